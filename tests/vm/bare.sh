# Run by the first shell of a user-mode Linux, on whose /mnt is a folder of the host: what podtracer does without BTF.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
# This checkout in place of the one that the project was installed from.
for part in tracer bpf; do mount -t hostfs -o "$1/$part" "$part" "/opt/podtracer/$part"; done
run() {
    name=$1
    shift
    /opt/podtracer/.venv/bin/podtracer "$@" >"/mnt/$name.out" 2>"/mnt/$name.err"
    echo $? >"/mnt/$name.code"
}
uname -r >/mnt/release
ls /sys/kernel/btf >/mnt/btf 2>&1
run lookup lookup --standalone 1
run doctor doctor -o json --kubelet none --cri none --pods-api none
busybox poweroff -f
