-- Take a change off those that are pending, and enter it into the audit log.
-- KEYS: log, pending changes.  ARGV: token or "", record or "" for none, "1" to enter it only if it was pending, entries
-- that are kept.  Returns 1 entered, 0 not.
local was_pending = redis.call('HDEL', KEYS[2], ARGV[1])
if ARGV[2] == '' or (ARGV[3] == '1' and was_pending == 0) then return 0 end
redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], '*', 'entry', ARGV[2])
return 1
