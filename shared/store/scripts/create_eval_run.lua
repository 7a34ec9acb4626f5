-- Store a new run of an eval, once.
-- KEYS: run hash, runs of the eval, active runs, sequence, eval.  ARGV: run id, record, data source.
-- Returns 1 created, 0 that id is there already, -1 the eval is gone.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if redis.call('EXISTS', KEYS[5]) == 0 then return -1 end
local order = redis.call('INCR', KEYS[4])
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'source', ARGV[3], 'version', 1)
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('ZADD', KEYS[3], order, ARGV[1])
return 1
