-- Count the other instance of this node's name as dead, as soon as its subscription is gone too: a killed process loses
-- that at once, its keys only when the lease runs out.
--
-- KEYS  1 Alive+epoch of the other
-- ARGV  1 the node's channel  2 subscribers of it that are this very process
-- Returns 1 where it is dead, 0 where it may live.

if redis.call('PUBSUB', 'NUMSUB', ARGV[1])[2] > tonumber(ARGV[2]) then return 0 end
redis.call('DEL', KEYS[1])
return 1
