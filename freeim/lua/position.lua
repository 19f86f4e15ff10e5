-- Keep how far a node has come in its stream, and forget the part of the stream behind it.
--
-- KEYS  1 Lease+name  2 Position+name  3 Stream+name
-- ARGV  1 epoch  2 id of the last message handled  3 its running number  4 id of the oldest message to leave
-- Returns 1, or 0 where another instance owns the name.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
-- First, so that a Redis without memory gets some.
redis.call('XTRIM', KEYS[3], 'MINID', '~', ARGV[4])
redis.call('SET', KEYS[2], ARGV[2] .. ' ' .. ARGV[3])
return 1
