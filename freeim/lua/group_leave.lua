-- Give the lease of an event group back, and tell the other members, so that one of them takes it at once.
--
-- KEYS  1 Group+name
-- ARGV  1 member  2 the fence that it led with  3 number of the mark  4 what it has handled, as JSON
-- Returns 1, or 0 where the lease was another's already.

if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
local mark = '{"fence":' .. ARGV[2] .. ',"mark":' .. ARGV[3] .. ',"handled":' .. ARGV[4] .. ',"released":true}'
redis.call('PUBLISH', KEYS[1], mark)
return 1
