-- Store a new run of an eval, once, have it hold its file, and count what it keeps besides.
-- KEYS: run hash, runs of the eval, active runs, sequence, eval, active runs of the project, stored answers of the
--       project, bytes of the project, file, who holds the file
-- ARGV: run id, record, data source, most active runs of the project or -1, bytes of its own rows, size of the file in
--       bytes or "" for none
-- Returns 1 created, 0 that id is there already, -2 the project's files were never counted, -3 the file is gone,
-- -4 the eval is gone, -5 the project has too many active runs.
if redis.call('EXISTS', KEYS[1]) == 1 then return 0 end
if redis.call('EXISTS', KEYS[5]) == 0 then return -4 end
local limit = tonumber(ARGV[4])
if limit >= 0 and redis.call('SCARD', KEYS[6]) >= limit then return -5 end
if ARGV[6] ~= '' then
  if redis.call('EXISTS', KEYS[9]) == 0 then return -3 end
  if redis.call('EXISTS', KEYS[8]) == 0 then return -2 end
  redis.call('SADD', KEYS[10], ARGV[1])
end
local order = redis.call('INCR', KEYS[4])
local counted = string.format('%.0f', #ARGV[3] + ARGV[5])
redis.call(
  'HSET', KEYS[1], 'record', ARGV[2], 'source', ARGV[3], 'version', 1, 'counted', counted, 'file_bytes', ARGV[6]
)
count_bytes(KEYS[7], KEYS[8], ARGV[1], counted, 0)
redis.call('ZADD', KEYS[2], order, ARGV[1])
redis.call('ZADD', KEYS[3], order, ARGV[1])
redis.call('SADD', KEYS[6], ARGV[1])
return 1
