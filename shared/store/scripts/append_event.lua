-- Append events to a job's stream, once, if the job exists and the writer is its owner.
-- KEYS: job hash, event stream.  ARGV: lease token or "", nonce, events ...
-- Returns 1 done, also before, -1 no such job, -2 somebody else has claimed it.
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
if is_done(KEYS[1], ARGV[2]) then return 1 end
if is_fenced_off(KEYS[1], ARGV[1]) then return -2 end
for i = 3, #ARGV do redis.call('XADD', KEYS[2], '*', 'event', ARGV[i]) end
note_done(KEYS[1], ARGV[2])
return 1
