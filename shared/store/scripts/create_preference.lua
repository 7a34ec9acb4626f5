-- Store a new preference, once, and enter it in its project's list.
-- KEYS: hash, preferences of the project, sequence, stored answers of the project, bytes of the project
-- ARGV: id, project, record
-- Returns 1 created, 0 that id is there already.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
keep_answer(KEYS[1], KEYS[4], KEYS[5], ARGV[1], '0', {'project', ARGV[2], 'record', ARGV[3]})
redis.call('ZADD', KEYS[2], redis.call('INCR', KEYS[3]), ARGV[1])
return 1
