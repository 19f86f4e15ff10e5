-- Take a node's name and register it, in one step, so that two nodes that start together cannot both succeed.
--
-- KEYS  1 Lease+name  2 Alive+epoch  3 Shares  4 Nodes  5 Urls  6 Bus
--       7 Alive+epoch of the predecessor that hands its name over, left out without one
-- ARGV  1 prefix  2 name  3 epoch  4 lease in ms  5 "1" to take over from a living owner
--       6 the node list as JSON, or "" for a node without one  7 "1" to replace a list in use
--       8 public URL, or ""  9 subscribers of this name's channel that are this very process
--       10 the kind of bus to register, or "" for pub/sub
--       11 epoch of the predecessor, or ""  12 what to publish for both at this moment, where there is one
-- Returns {"OK", list JSON, epochs to bury…}, {"TAKEN", epoch of the owner}, {"LIST", registered list JSON},
--         {"BUS", the kind of bus in use}, or {"GONE", ""} for a predecessor that does not live.

local prefix, name, epoch, predecessor = ARGV[1], ARGV[2], ARGV[3], ARGV[11]
if KEYS[7] and redis.call('EXISTS', KEYS[7]) == 0 then return {'GONE', ''} end

-- A node lives when its Alive exists *and* its channel has a subscriber: a killed process loses its subscription at
-- once, its keys only when the lease runs out.
local function lives(node)
  local owner = redis.call('GET', prefix .. 'Lease' .. node)
  if not owner or redis.call('EXISTS', prefix .. 'Alive' .. owner) == 0 then return false end
  local own = node == name and tonumber(ARGV[9]) or 0
  return redis.call('PUBSUB', 'NUMSUB', prefix .. 'Server' .. node)[2] > own
end

local registered = redis.call('GET', KEYS[4])
local current = registered and cjson.decode(registered) or {v = 0, nodes = {}}
local wanted
if ARGV[6] ~= '' then
  wanted = cjson.decode(ARGV[6])
else
  wanted = {name}
  for _, node in ipairs(current.nodes) do
    if node == name then wanted = current.nodes end
  end
end

local same = #wanted == #current.nodes
for i = 1, #wanted do same = same and wanted[i] == current.nodes[i] end
if not same and ARGV[7] ~= '1' then
  for _, node in ipairs(current.nodes) do
    if lives(node) then return {'LIST', cjson.encode(current.nodes)} end
  end
end

local function kind(bus) return bus:match('^%a+') or 'pubsub' end
if kind(redis.call('GET', KEYS[6]) or '') ~= kind(ARGV[10]) then
  for _, node in ipairs(current.nodes) do
    if lives(node) then return {'BUS', kind(redis.call('GET', KEYS[6]) or '')} end
  end
end

local owner = redis.call('GET', KEYS[1])
if owner and owner ~= epoch and owner ~= predecessor then
  if lives(name) then
    if ARGV[5] ~= '1' then return {'TAKEN', owner} end
  else
    redis.call('DEL', prefix .. 'Alive' .. owner)
  end
end

if not same then
  redis.call('SET', KEYS[4], cjson.encode({v = current.v + 1, by = 'mod', nodes = wanted, prev = cjson.null}))
end
if ARGV[8] ~= '' then
  redis.call('HSET', KEYS[5], name, ARGV[8])
else
  redis.call('HDEL', KEYS[5], name)
end
if ARGV[10] ~= '' then redis.call('SET', KEYS[6], ARGV[10]) else redis.call('DEL', KEYS[6]) end
redis.call('SET', KEYS[1], epoch, 'PX', ARGV[4])
redis.call('SET', KEYS[2], name, 'PX', ARGV[4])
redis.call('HSET', KEYS[3], epoch, name)
if KEYS[7] then redis.call('PUBLISH', prefix .. 'Server' .. name, ARGV[12]) end

local result = {'OK', cjson.encode(wanted)}
local shares = redis.call('HGETALL', KEYS[3])
for i = 1, #shares, 2 do
  if shares[i + 1] == name and shares[i] ~= epoch and redis.call('EXISTS', prefix .. 'Alive' .. shares[i]) == 0 then
    result[#result + 1] = shares[i]
  end
end
return result
