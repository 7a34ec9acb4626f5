-- Store a new batch, once, and have it hold its input's bytes.
-- KEYS: batch hash, batches of the project, active batches, sequence, file, who holds the file, bytes of the project
-- ARGV: batch id, record, size of the file in bytes or "" to hold nothing
-- Returns 1 created, 0 that id is there already, -2 the project's files were never counted, -3 the file is gone.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if ARGV[3] ~= '' then
  if redis.call('EXISTS', KEYS[5]) == 0 then return -3 end
  if redis.call('EXISTS', KEYS[7]) == 0 then return -2 end
  redis.call('SADD', KEYS[6], ARGV[1])
end
local order = redis.call('INCR', KEYS[4])
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', 1, 'input_bytes', ARGV[3])
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('ZADD', KEYS[3], order, ARGV[1])
return 1
