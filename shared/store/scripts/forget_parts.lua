-- Forget an upload's parts and give their bytes back; from then on it takes no more.
-- KEYS: upload hash, parts, uploads, bytes of the project.  ARGV: upload id, seconds that the upload stays readable
local counted = redis.call('HGET', KEYS[1], 'counted')
redis.call('HDEL', KEYS[1], 'counted')
if counted and redis.call('EXISTS', KEYS[4]) == 1 then redis.call('DECRBY', KEYS[4], counted) end
redis.call('DEL', KEYS[2])
redis.call('ZREM', KEYS[3], ARGV[1])
redis.call('EXPIRE', KEYS[1], ARGV[2])
return 1
