-- Take a model off its project's list, and give its bytes back, once.
-- KEYS: models of the project, bytes of the project.  ARGV: name, size in bytes.  Returns 1 done, 0 it was not there.
if redis.call('SREM', KEYS[1], ARGV[1]) == 0 then return 0 end
redis.call('DECRBY', KEYS[2], ARGV[2])
return 1
