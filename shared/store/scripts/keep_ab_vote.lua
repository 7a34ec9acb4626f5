-- Keep a vote on a row of an A/B run, once for each voter, and count its bytes among the run's results.
-- KEYS: run hash, items, votes, active runs, stored answers of the project, bytes of the project
-- ARGV: run id, row's number, "{number} {voter}", vote
-- Returns 1 kept, -1 there is no such row, or the vote that this voter gave before.
if redis.call('EXISTS', KEYS[1]) == 0 or redis.call('HEXISTS', KEYS[2], ARGV[2]) == 0 then return -1 end
local before = redis.call('HGET', KEYS[3], ARGV[3])
if before then return before end
redis.call('HSET', KEYS[3], ARGV[3], ARGV[4])
local counted = redis.call('HGET', KEYS[1], 'result_bytes') or '0'
redis.call('HINCRBY', KEYS[1], 'result_bytes', #ARGV[3] + #ARGV[4])
if redis.call('ZSCORE', KEYS[4], ARGV[1]) then return 1 end
-- The run is at its end: its results count, and have their lifetime.
local left, id = redis.call('PTTL', KEYS[2]), ARGV[1] .. ' results'
if left > 0 then redis.call('PEXPIRE', KEYS[3], left) end
local expires_at = redis.call('ZSCORE', KEYS[5], id .. ' ' .. counted)
if expires_at then
  uncount_bytes(KEYS[5], KEYS[6], id, counted)
  count_bytes(KEYS[5], KEYS[6], id, redis.call('HGET', KEYS[1], 'result_bytes'), expires_at)
end
return 1
