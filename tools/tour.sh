echo "== uname -a"; uname -a
echo; echo "== processors"; grep -E 'processor|vendor_id|model name|cpu MHz|flags' /proc/cpuinfo | cut -c1-100
echo; echo "== memory"; free -m
echo; echo "== interrupts"; cat /proc/interrupts
echo; echo "== uptime"; uptime
