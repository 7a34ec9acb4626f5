-- Forget a file and give its bytes back, once; while batches or eval runs hold them, the last of these does that.
-- KEYS: file, files of the project, bytes of the project, files that expire, who holds the file
-- ARGV: file id, size in bytes, beginning of the places' keys of the project's files
-- Returns 1 removed, 0 not there.
leave_list(KEYS[2], ARGV[1], ARGV[3])
redis.call('ZREM', KEYS[4], ARGV[1])
if redis.call('DEL', KEYS[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[5]) == 1 then return 1 end
if redis.call('EXISTS', KEYS[3]) == 1 then redis.call('DECRBY', KEYS[3], ARGV[2]) end
return 1
