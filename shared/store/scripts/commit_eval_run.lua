-- Replace a run's record if nobody else did meanwhile. At its end it leaves the active runs, its rows and drafts go, and
-- the results of its rows get their lifetime; they count so long, and its data source for ever.
-- KEYS: run hash, active runs, active runs of the project, stored answers of the project, bytes of the project, file, who
--       holds the file, drafts, then what gets the lifetime ...
-- ARGV: expected version, new record, lease token or "", run id, "1" at its end, seconds to keep results or 0
-- Returns 1 done, 0 somebody wrote first, -1 no such run, -2 somebody else has claimed it.
local version = redis.call('HGET', KEYS[1], 'version')
if not version then return -1 end
if is_fenced_off(KEYS[1], ARGV[3]) then return -2 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', tonumber(version) + 1)
if ARGV[5] == '1' and redis.call('ZREM', KEYS[2], ARGV[4]) == 1 then
  local expires_at = 0
  redis.call('SREM', KEYS[3], ARGV[4])
  release_file(KEYS[6], KEYS[7], KEYS[5], ARGV[4], redis.call('HGET', KEYS[1], 'file_bytes'))
  redis.call('UNLINK', KEYS[8])
  if tonumber(ARGV[6]) > 0 then
    expires_at = redis.call('TIME')[1] + ARGV[6]
    for i = 9, #KEYS do redis.call('EXPIRE', KEYS[i], ARGV[6]) end
  end
  uncount_bytes(KEYS[4], KEYS[5], ARGV[4], redis.call('HGET', KEYS[1], 'counted'))
  local source = redis.call('HSTRLEN', KEYS[1], 'source')
  redis.call('HSET', KEYS[1], 'counted', source)
  count_bytes(KEYS[4], KEYS[5], ARGV[4], source, 0)
  count_bytes(KEYS[4], KEYS[5], ARGV[4] .. ' results', redis.call('HGET', KEYS[1], 'result_bytes') or 0, expires_at)
end
return 1
