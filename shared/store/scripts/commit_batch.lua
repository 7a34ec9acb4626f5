-- Replace a batch's record if nobody else did meanwhile.
-- A batch that comes to its end leaves the active batches and is noted among the outcomes, once, in the same step. The
-- bytes of its input are given back if the file is gone and nobody else holds it.
-- KEYS: batch hash, active batches, outcomes, file, who holds the file, bytes of the project
-- ARGV: expected version, new record, lease token or "", batch id, status, "1" if that is terminal
-- Returns 1 done, 0 somebody wrote first, -1 no such batch, -2 somebody else has claimed it.
local version = redis.call('HGET', KEYS[1], 'version')
if not version then return -1 end
if is_fenced_off(KEYS[1], ARGV[3]) then return -2 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', tonumber(version) + 1)
if ARGV[6] == '1' and redis.call('ZREM', KEYS[2], ARGV[4]) == 1 then
  redis.call('ZADD', KEYS[3], 0, ARGV[4] .. ' ' .. ARGV[5])
  release_file(KEYS[4], KEYS[5], KEYS[6], ARGV[4], redis.call('HGET', KEYS[1], 'input_bytes'))
end
return 1
