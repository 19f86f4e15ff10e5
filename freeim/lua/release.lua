-- Give a name back after a clean stop: the keys of a life that is over are deleted, not left to expire.
--
-- KEYS  1 Lease+name  2 Alive+epoch  3 Shares  4 Share+epoch
-- ARGV  1 epoch
-- Returns how many connections are left in the share (a burier takes them out).

if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
redis.call('DEL', KEYS[2])
local left = redis.call('HLEN', KEYS[4])
if left == 0 then redis.call('HDEL', KEYS[3], ARGV[1]) end
return left
