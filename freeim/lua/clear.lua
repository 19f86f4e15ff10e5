-- Clear: the members of a channel that have no connection stop being members.
--   KEYS[1]  P+Chan+channel     KEYS[2]  P+ListChan     KEYS[3]  P+Online
--   ARGV[1]  channel            ARGV[2]  P+Client, to which a member's id is appended
-- Returns how many members were removed.
-- All three hashes are mended: Chan, each removed member's Client, and the count, which becomes the length of Chan.
-- Ids are never turned into numbers: Lua's lose the digits of a large int64.
local members = redis.call('HKEYS', KEYS[1])
local gone = 0
for first = 1, #members, 1000 do  -- in slices: unpack is limited by Lua's stack
  local last = math.min(first + 999, #members)
  local online = redis.call('HMGET', KEYS[3], unpack(members, first, last))
  for i = first, last do
    local connections = online[i - first + 1]
    if not connections or (tonumber(connections) or 0) <= 0 then
      redis.call('HDEL', KEYS[1], members[i])
      redis.call('HDEL', ARGV[2] .. members[i], ARGV[1])
      gone = gone + 1
    end
  end
end
local left = redis.call('HLEN', KEYS[1])
if left > 0 then
  redis.call('HSET', KEYS[2], ARGV[1], left)
else
  redis.call('HDEL', KEYS[2], ARGV[1])
end
return gone
