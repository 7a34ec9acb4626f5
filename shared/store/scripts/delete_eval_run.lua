-- Delete a run with all that belongs to it, and give its bytes back.
-- KEYS: runs of the eval, active runs, active runs of the project, stored answers of the project, bytes of the project,
--       file, who holds the file, run hash, then what else to delete ...
-- ARGV: run id, beginning of the places' keys.
local file_bytes, counted, results = unpack(redis.call('HMGET', KEYS[8], 'file_bytes', 'counted', 'result_bytes'))
release_file(KEYS[6], KEYS[7], KEYS[5], ARGV[1], file_bytes)
uncount_bytes(KEYS[4], KEYS[5], ARGV[1], counted)
uncount_bytes(KEYS[4], KEYS[5], ARGV[1] .. ' results', results or 0)
redis.call('UNLINK', unpack(KEYS, 8))
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('SREM', KEYS[3], ARGV[1])
leave_list(KEYS[1], ARGV[1], ARGV[2])
return 1
