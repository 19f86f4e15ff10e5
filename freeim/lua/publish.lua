-- Publish to one node with --bus stream: keep the message in the node's stream, and tell the node at once.
--
-- KEYS  1 Stream+name  2 Sent+name
-- ARGV  1 how many messages to keep, at least  2 Server+name, the node's channel  3 the payload
-- Returns how many subscribers heard it. The node hears the payload behind its id and its running number.

local n = redis.call('INCR', KEYS[2])
local id = redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[1], '*', 'n', n, 'm', ARGV[3])
return redis.call('PUBLISH', ARGV[2], '__FreeIM__(Stream)' .. id .. ' ' .. string.format('%.0f', n) .. ' ' .. ARGV[3])
