-- Store a new alias with the first entry of its history, unless the name is taken or the project has too many.
-- KEYS: alias, aliases of the project, sequence, history.  ARGV: name, record, entry, limit.
-- Returns 1 created, 0 the name is taken, -1 too many.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[4]) then return -1 end
redis.call('SET', KEYS[1], ARGV[2])
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
redis.call('LPUSH', KEYS[4], ARGV[3])
return 1
