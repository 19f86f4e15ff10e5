-- Read what a node has missed of its stream. It runs on the connection that is subscribed, so that what is published
-- after it comes behind its reply.
--
-- KEYS  1 Stream+name
-- ARGV  1 id of the last message that the node has handled  2 bytes to return, and up to 32 messages more
-- Returns {id of the newest message or false, 1 where no more follow, the entries after the id, the entry with that id
-- or false}.

local newest = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local found, size, after, part = {}, 0, ARGV[1], nil
repeat
  part = redis.call('XRANGE', KEYS[1], '(' .. after, '+', 'COUNT', 32)
  for _, entry in ipairs(part) do
    found[#found + 1] = entry
    size = size + #entry[2][#entry[2]] + 64
    after = entry[1]
  end
until #part < 32 or size >= tonumber(ARGV[2])
local known = redis.call('XRANGE', KEYS[1], ARGV[1], ARGV[1])[1]
return {newest and newest[1] or false, #part < 32 and 1 or 0, found, known or false}
