-- Free the tracking entry of a Client hash that was read while missing (a DEL alone invalidates nothing).
--
-- KEYS  1 Client+id

if redis.call('EXISTS', KEYS[1]) == 0 then
  redis.call('HSET', KEYS[1], '', 0)
  redis.call('DEL', KEYS[1])
end
return 0
