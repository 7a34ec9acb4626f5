-- Store a new webhook endpoint unless its project has too many.
-- KEYS: record, endpoints of the project, sequence.  ARGV: id, record, limit.  Returns 1 done, 0 too many.
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[3]) then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
return 1
