-- Take a lease that nobody holds, and fence off whoever held it before.
-- KEYS: lease, hash of what it is on.  ARGV: random end of the token, milliseconds.
-- Returns the token, which begins with the number of the claim, or nothing while somebody else holds it or where there
-- is nothing to hold.
if is_held(KEYS[1], tonumber(ARGV[2])) or redis.call('EXISTS', KEYS[2]) == 0 then return false end
local token = redis.call('HINCRBY', KEYS[2], 'claims', 1) .. '-' .. ARGV[1]
redis.call('SET', KEYS[1], token, 'PX', ARGV[2])
redis.call('HSET', KEYS[2], 'owner', token)
return token
