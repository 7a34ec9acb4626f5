-- Store a new eval, once.
-- KEYS: record, evals of the project, the same by their last change, sequence.  ARGV: id, record.
-- Returns 1 created, 0 that id is there already.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
local order = redis.call('INCR', KEYS[4])
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('ZADD', KEYS[3], order, ARGV[1])
return 1
