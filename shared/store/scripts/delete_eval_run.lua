-- Delete a run with all that belongs to it.
-- KEYS: runs of the eval, active runs, then what to delete ...  ARGV: run id, beginning of the places' keys.
redis.call('UNLINK', unpack(KEYS, 3))
redis.call('ZREM', KEYS[2], ARGV[1])
leave_list(KEYS[1], ARGV[1], ARGV[2])
return 1
