-- Renew a node's life, or revive it; send the probe that shows the node its own channel still reaches it.
--
-- KEYS  1 Lease+name  2 Alive+epoch  3 Shares  4 Server+name  5 Nodes  6 Urls  7 Bus
--       8 Alive+epoch of the other, where the name was offered to another instance
-- ARGV  1 name  2 epoch  3 lease in ms  4 the probe  5 what to register where Redis has lost the list of nodes
--       6 public URL, or ""  7 the kind of bus, or "" for pub/sub
--       8 "" without another instance, "offered" while it may take the name, "back" after it has failed,
--         "drains" once it serves  9 the other's epoch, or ""
-- Returns "OK", "REVIVED" (the life had ended: reconcile), or "REPLACED" (another process owns the name: drain).

local stance, other = ARGV[8], ARGV[9]
local owner = redis.call('GET', KEYS[1])
local mine = not owner or owner == ARGV[2]
if not mine and stance == 'back' and owner == other then
  redis.call('DEL', KEYS[8])
  if ARGV[6] ~= '' then redis.call('HSET', KEYS[6], ARGV[1], ARGV[6]) else redis.call('HDEL', KEYS[6], ARGV[1]) end
  mine = true
elseif stance == 'drains' then
  mine = false
elseif not mine and not (stance == 'offered' and owner == other) then
  return 'REPLACED'
end
-- First of all, so that a Redis without memory, which refuses the writes, does not look like one that is silent.
redis.call('PUBLISH', KEYS[4], ARGV[4])
local revived = redis.call('EXISTS', KEYS[2]) == 0
if mine then redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3]) end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[1])
if revived then
  redis.call('SET', KEYS[5], ARGV[5], 'NX')
  if mine and ARGV[6] ~= '' then redis.call('HSET', KEYS[6], ARGV[1], ARGV[6]) end
  if ARGV[7] ~= '' then redis.call('SET', KEYS[7], ARGV[7], 'NX') end
end
return revived and 'REVIVED' or 'OK'
