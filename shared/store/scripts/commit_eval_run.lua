-- Replace a run's record if nobody else did meanwhile. At its end it leaves the active runs, its drafts go, and the
-- results of its rows get their lifetime.
-- KEYS: run hash, active runs, drafts, then what gets the lifetime ...
-- ARGV: expected version, new record, lease token or "", run id, "1" at its end, seconds to keep results or 0
-- Returns 1 done, 0 somebody wrote first, -1 no such run, -2 somebody else has claimed it.
local version = redis.call('HGET', KEYS[1], 'version')
if not version then return -1 end
if is_fenced_off(KEYS[1], ARGV[3]) then return -2 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', tonumber(version) + 1)
if ARGV[5] == '1' then
  redis.call('ZREM', KEYS[2], ARGV[4])
  redis.call('UNLINK', KEYS[3])
  for i = 4, #KEYS do
    if tonumber(ARGV[6]) > 0 then redis.call('EXPIRE', KEYS[i], ARGV[6]) end
  end
end
return 1
