-- Take a model off its project's list, and give its bytes back, once, if the writer is the owner of the job that made it.
-- KEYS: models of the project, bytes of the project, job hash.  ARGV: name, size in bytes, lease token or "".
-- Returns 1 done, 0 it was not there, -2 somebody else has claimed the job.
if is_fenced_off(KEYS[3], ARGV[3]) then return -2 end
if redis.call('SREM', KEYS[1], ARGV[1]) == 0 then return 0 end
if redis.call('EXISTS', KEYS[2]) == 1 then redis.call('DECRBY', KEYS[2], ARGV[2]) end
return 1
