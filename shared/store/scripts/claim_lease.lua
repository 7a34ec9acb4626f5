-- Take a lease that nobody holds, and fence off whoever held it before.
-- KEYS: lease, hash of what it is on.  ARGV: token, milliseconds.
-- Returns 1, or 0 while somebody else holds it or where there is nothing to hold.
if redis.call('EXISTS', KEYS[2]) == 0 then return 0 end
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return 0 end
redis.call('HSET', KEYS[2], 'owner', ARGV[1])
return 1
