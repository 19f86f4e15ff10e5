-- Join: clients become members of channels. One script however many, so nobody sees half of a call.
--   KEYS[1]         P+ListChan
--   KEYS[2i]        P+Chan+channel of the pair i      KEYS[2i+1]  P+Client+clientId of the pair i
--   ARGV[2i-1]      clientId of the pair i            ARGV[2i]    channel of the pair i
-- Returns how many pairs were new to Chan.
-- Client is written whatever Chan says: a lost or stale index is mended. HSETNX, because rewriting the same value would
-- make every node that tracks the hash read it again. The count is the length of Chan rather than one more than before,
-- so that a count which was left wrong comes right.
local new = 0
for i = 1, #ARGV, 2 do
  local client, channel = ARGV[i], ARGV[i + 1]
  if redis.call('HSETNX', KEYS[i + 1], client, '0') == 1 then
    new = new + 1
    redis.call('HSET', KEYS[1], channel, redis.call('HLEN', KEYS[i + 1]))
  end
  redis.call('HSETNX', KEYS[i + 2], channel, '0')
end
return new
