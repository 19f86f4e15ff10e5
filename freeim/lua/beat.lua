-- Renew a node's life, or revive it; send the probe that shows the node its own channel still reaches it.
--
-- KEYS  1 Lease+name  2 Alive+epoch  3 Shares  4 Server+name  5 Nodes  6 Urls  7 Bus
-- ARGV  1 name  2 epoch  3 lease in ms  4 the probe  5 what to register where Redis has lost the list of nodes
--       6 public URL, or ""  7 the kind of bus, or "" for pub/sub
-- Returns "OK", "REVIVED" (the life had ended: reconcile), or "REPLACED" (another process owns the name: drain).

local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[2] then return 'REPLACED' end
-- First of all, so that a Redis without memory, which refuses the writes, does not look like one that is silent.
redis.call('PUBLISH', KEYS[4], ARGV[4])
local revived = redis.call('EXISTS', KEYS[2]) == 0
redis.call('SET', KEYS[1], ARGV[2], 'PX', ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[3])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[1])
if revived then
  redis.call('SET', KEYS[5], ARGV[5], 'NX')
  if ARGV[6] ~= '' then redis.call('HSET', KEYS[6], ARGV[1], ARGV[6]) end
  if ARGV[7] ~= '' then redis.call('SET', KEYS[7], ARGV[7], 'NX') end
end
return revived and 'REVIVED' or 'OK'
