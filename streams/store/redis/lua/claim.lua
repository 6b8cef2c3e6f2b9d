-- Take, keep or give back the right to fill a partition.
--
-- KEYS[1]   the claim
-- ARGV[1]   the worker's token       ARGV[2]  ms that it lives from now; 0 gives it back
-- ARGV[3]   'keep': only if it is the worker's still; one that ran out may have been another's meanwhile
--
-- Returns 1 when the claim is the worker's (or was given back), 0 when it is not.
local holder = redis.call('GET', KEYS[1])
if holder ~= ARGV[1] and (holder or ARGV[3] == 'keep') then
  return 0
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
else
  redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
end
return 1
