-- Count one opened connection: burn its token, raise Online, mend the client's channels, publish Online.
--
-- KEYS  1 Alive+epoch  2 Share+epoch  3 Online  4 Client+id  5 ListChan
--       6 Gone  7 Token+token, left out where it is burnt already
-- ARGV  1 prefix  2 connection number  3 client id  4 the token's JSON  5 channel of Online events
--       6… channels to restore when the share had lost this connection (only without a token)
-- Returns the client's number of connections, -1 for a replay, -2 FENCED (no Alive: beat first), -3 USED (token gone).

local prefix, id, json = ARGV[1], ARGV[3], ARGV[4]
if redis.call('EXISTS', KEYS[1]) == 0 then return -2 end
if redis.call('HSETNX', KEYS[2], ARGV[2], id .. ' ' .. json) == 0 then return -1 end
if KEYS[7] and redis.call('DEL', KEYS[7]) == 0 then
  redis.call('HDEL', KEYS[2], ARGV[2])
  return -3
end
local n = redis.call('HINCRBY', KEYS[3], id, 1)
redis.call('HDEL', KEYS[6], id) -- it may have been on its way from an instance that drains (drain.lua)

for i = 6, #ARGV do
  local channel = ARGV[i]
  redis.call('HSET', KEYS[4], channel, 0)
  if redis.call('HSETNX', prefix .. 'Chan' .. channel, id, 0) == 1 then
    redis.call('HSET', KEYS[5], channel, redis.call('HLEN', prefix .. 'Chan' .. channel))
  end
end
-- Chan decides who is a member, Client is the index of it: drop what Chan does not confirm.
for _, channel in ipairs(redis.call('HKEYS', KEYS[4])) do
  if redis.call('HEXISTS', prefix .. 'Chan' .. channel, id) == 0 then
    redis.call('HDEL', KEYS[4], channel)
  end
end

redis.call('PUBLISH', ARGV[5], (json:gsub('}%s*$', ',"Item3":' .. n .. '}')))
return n
