-- Store a new batch, once.
-- KEYS: batch hash, batches of the project, active batches, sequence.  ARGV: batch id, record
-- Returns 1 created, 0 that id is there already.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local order = redis.call('INCR', KEYS[4])
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', 1)
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('ZADD', KEYS[3], order, ARGV[1])
return 1
