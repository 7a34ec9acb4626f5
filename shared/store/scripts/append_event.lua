-- Append events to a job's stream, once, if the job exists and the writer still holds its lease.
-- KEYS: job hash, event stream, lease.  ARGV: lease token or "", nonce, events ...
-- Returns 1 done, also before, -1 no such job, -2 the lease belongs to somebody else.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if is_done(KEYS[1], ARGV[2]) then return 1 end
if ARGV[1] ~= '' and redis.call('GET', KEYS[3]) ~= ARGV[1] then return -2 end
for i = 3, #ARGV do redis.call('XADD', KEYS[2], '*', 'event', ARGV[i]) end
note_done(KEYS[1], ARGV[2])
return 1
