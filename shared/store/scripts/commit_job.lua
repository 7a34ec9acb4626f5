-- Replace a job's record if nobody else did meanwhile, and append its events, in one step.
-- A job that comes to its end leaves the sets of active jobs and is noted among the outcomes, once; a project without
-- active jobs owes no turns. The turn of a job that runs is the one that new jobs come after.
-- KEYS: job hash, event stream, active jobs, active jobs of the project, outcomes, turns of the job's priority, turns of
--       every priority ...
-- ARGV: expected version, new record, lease token or "", job id, status, "1" if that is terminal, nonce, project,
--       events ...
-- Returns 1 done, 2 done before, 0 somebody wrote first, -1 no such job, -2 somebody else has claimed it.
local version = redis.call('HGET', KEYS[1], 'version')
if not version then return -1 end
if is_done(KEYS[1], ARGV[7]) then return 2 end
if is_fenced_off(KEYS[1], ARGV[3]) then return -2 end
if version ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'record', ARGV[2], 'version', tonumber(version) + 1)
if ARGV[6] == '1' then
  redis.call('SREM', KEYS[4], ARGV[4])
  if redis.call('EXISTS', KEYS[4]) == 0 then
    for i = 7, #KEYS do redis.call('HDEL', KEYS[i], 'last ' .. ARGV[8]) end
  end
  if redis.call('SREM', KEYS[3], ARGV[4]) == 1 then redis.call('ZADD', KEYS[5], 0, ARGV[4] .. ' ' .. ARGV[5]) end
else
  redis.call('SADD', KEYS[3], ARGV[4])
  redis.call('SADD', KEYS[4], ARGV[4])
end
local turn = ARGV[5] == 'running' and redis.call('HGET', KEYS[1], 'turn')
if turn then begin_turn(KEYS[6], tonumber(turn)) end
for i = 9, #ARGV do redis.call('XADD', KEYS[2], '*', 'event', ARGV[i]) end
note_done(KEYS[1], ARGV[7])
return 1
