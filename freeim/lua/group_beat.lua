-- Beat of a member of an event group: renew its lease, or take the one that is free, and publish a mark.
--
-- KEYS  1 Group+name  2 Fences
-- ARGV  1 group  2 member  3 lease in ms  4 the fence that the member leads with, 0 for none
--       5 the highest fence that it has seen  6 "1" to take a lease that is free at once
--       7 number of the mark  8 what it has handled, as JSON
-- Returns {"LEADS", fence}, {"FOLLOWS", fence} while another member leads, or {"FREE", fence} for a member that waits.

local group, member, lease = ARGV[1], ARGV[2], tonumber(ARGV[3])
local owner = redis.call('GET', KEYS[1])
local last = tonumber(redis.call('HGET', KEYS[2], group) or 0) or 0

if owner and owner ~= member then
  -- A lease cannot be that long: the clock of Redis was set back, and a dead leader would keep it until then.
  if redis.call('PTTL', KEYS[1]) > lease then redis.call('SET', KEYS[1], owner, 'PX', lease) end
  return {'FOLLOWS', last}
end

local fence, number, handled = tonumber(ARGV[4]), ARGV[7], ARGV[8]
-- The same fence as before: nobody has led in between, even where the lease had run out.
if fence == 0 or fence ~= last then
  if not owner and last > 0 and ARGV[6] ~= '1' then return {'FREE', last} end
  -- What members have seen counts too: a Redis that came back empty, or without the last writes, has forgotten.
  fence = math.max(last, tonumber(ARGV[5])) + 1
  number, handled = '0', 'null'
  redis.call('HSET', KEYS[2], group, fence)
end
redis.call('SET', KEYS[1], member, 'PX', lease)
redis.call('PUBLISH', KEYS[1], '{"fence":' .. fence .. ',"mark":' .. number .. ',"handled":' .. handled .. '}')
return {'LEADS', fence}
