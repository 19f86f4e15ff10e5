-- Take connections out of the share of an instance that drains while another has its name. Offline is not published and
-- no channel left: the client of such a connection is on its way to the other instance. Where it was the client's last,
-- it is noted in Gone that both are due, until the client opens a connection anywhere; and the other instance, which has
-- to do it, gets a field "gone:<clientId>" in its share.
--
-- KEYS  1 Share+epoch  2 Online  3 Shares  4 Lease+name  5 Gone
-- ARGV  1 prefix  2 epoch  3 the other's epoch, for a lease that has run out  4 the node's channel
--       5 head of the message to the other  6… connection numbers
-- Returns how many connections were taken out; -1 where nobody has the name: close them.

local heir = redis.call('GET', KEYS[4]) or ARGV[3]
-- A share that is no longer in Shares has been taken out to its end, and nobody would look at it again.
if heir == ARGV[2] or redis.call('HEXISTS', KEYS[3], heir) == 0 then return -1 end

local closed, gone = 0, ''
for i = 6, #ARGV do
  local value = redis.call('HGET', KEYS[1], ARGV[i])
  if value then
    closed = closed + 1
    redis.call('HDEL', KEYS[1], ARGV[i])
    -- As in close.lua: ids stay text.
    local id = value:sub(1, value:find(' ', 1, true) - 1)
    if redis.call('HINCRBY', KEYS[2], id, -1) <= 0 then
      redis.call('HDEL', KEYS[2], id)
      redis.call('HSET', KEYS[5], id, heir)
      redis.call('HSET', ARGV[1] .. 'Share' .. heir, 'gone:' .. id, value)
      gone = gone .. ' ' .. id
    end
  end
end
if gone ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5] .. heir .. gone) end
return closed
