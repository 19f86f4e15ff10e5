-- Take connections out of a share: lower Online, end the membership with the last one, publish Offline for each.
-- One script for a node that closes its own connections and for a node that buries a dead share.
--
-- KEYS  1 Share+epoch  2 Online  3 ListChan  4 Shares  5 Alive+epoch  6 Gone
-- ARGV  1 prefix  2 channel of Offline events  3 epoch, to bury up to 100 of its share; or "" to close 4…
--       4… connection numbers, or "gone:<clientId>" for a client that drain.lua has taken out
-- Returns how many of these were taken out; -1 from a burial whose node turned out to live.

local prefix, epoch = ARGV[1], ARGV[3]

-- The tracking entry of a key that was read while missing is freed only by a write: so touch it, then delete it.
local function forget(client)
  redis.call('HSET', client, '', 0)
  redis.call('DEL', client)
end

local function close(number)
  local value = redis.call('HGET', KEYS[1], number)
  if not value then return 0 end -- buried, or a replay
  redis.call('HDEL', KEYS[1], number)
  -- Ids stay text: a number in Lua is a double and loses the last digits of an int64.
  local at = value:find(' ', 1, true)
  local id, json = value:sub(1, at - 1), value:sub(at + 1)
  local n
  if number:sub(1, 5) == 'gone:' then
    -- It has come back, and if it has gone again since, that is another's to say.
    if prefix .. 'Share' .. (redis.call('HGET', KEYS[6], id) or '') ~= KEYS[1] then return 1 end
    redis.call('HDEL', KEYS[6], id)
    if redis.call('HEXISTS', KEYS[2], id) == 1 then return 1 end
    n = 0
  else
    n = redis.call('HINCRBY', KEYS[2], id, -1)
  end
  if n <= 0 then
    n = 0
    redis.call('HDEL', KEYS[2], id)
    local client = prefix .. 'Client' .. id
    for _, channel in ipairs(redis.call('HKEYS', client)) do
      redis.call('HDEL', prefix .. 'Chan' .. channel, id)
      -- As in leave.lua: the count is the length of Chan, so one that was left wrong comes right.
      local left = redis.call('HLEN', prefix .. 'Chan' .. channel)
      if left > 0 then
        redis.call('HSET', KEYS[3], channel, left)
      else
        redis.call('HDEL', KEYS[3], channel)
      end
    end
    forget(client)
  end
  redis.call('PUBLISH', ARGV[2], (json:gsub('}%s*$', ',"Item3":' .. n .. '}')))
  return 1
end

local closed = 0
if epoch == '' then
  for i = 4, #ARGV do closed = closed + close(ARGV[i]) end
  return closed
end

if redis.call('EXISTS', KEYS[5]) == 1 then return -1 end
-- Not HSCAN: what is left of a big hash after many deletions may lie behind any number of empty steps.
for _, number in ipairs(redis.call('HRANDFIELD', KEYS[1], 100)) do closed = closed + close(number) end
if redis.call('EXISTS', KEYS[1]) == 0 then redis.call('HDEL', KEYS[4], epoch) end
return closed
