-- Leave: clients stop being members of channels. One script however many, so nobody sees half of a call.
--   KEYS[1]         P+ListChan
--   KEYS[2i]        P+Chan+channel of the pair i      KEYS[2i+1]  P+Client+clientId of the pair i
--   ARGV[2i-1]      clientId of the pair i            ARGV[2i]    channel of the pair i
-- Returns how many pairs Chan held.
-- Client is cleaned whatever Chan says, and the count is the length of Chan rather than one less than before: after a
-- .NET helper cleared the channel, both were left behind.
local gone = 0
for i = 1, #ARGV, 2 do
  local client, channel = ARGV[i], ARGV[i + 1]
  gone = gone + redis.call('HDEL', KEYS[i + 1], client)
  redis.call('HDEL', KEYS[i + 2], channel)
  local left = redis.call('HLEN', KEYS[i + 1])
  if left > 0 then
    redis.call('HSET', KEYS[1], channel, left)
  else
    redis.call('HDEL', KEYS[1], channel)
  end
end
return gone
