#!/usr/bin/env bash
# A real SLURM cluster, with accounting or without, on this one machine, for tests.
#
#   cluster.sh up [DIR]          start it (installs Debian's packages if they are missing)
#   cluster.sh status [DIR]      one line a daemon; exit 0 only if all of them run
#   cluster.sh down [DIR]        kill all of it, jobs included, and remove DIR
#   cluster.sh start|stop|restart DAEMON [DIR]
#                                DAEMON: slurmctld, slurmd (all nodes), a node's name, slurmdbd, mariadbd, munged
#
# Tried on Debian 12 (SLURM 22.05), as root; needs no systemd, cgroups or resolvable host name. Everything lives in
# DIR; commands see the cluster through SLURM_CONF=DIR/slurm.conf. Partitions: vc_research (default) and urgent,
# which preempts it (SIGTERM, grace time, requeue). Each node claims 64 CPUs, 20 GB and 8 GPUs, all of it fiction:
# jobs must be tiny, run on CPU and set OMP_NUM_THREADS=1. Only memory is enforced, by polling.
#
# Nodes: fovea0, fovea1, ... all on this host: Debian builds slurmd with --enable-multiple-slurmd, so each node is
# a slurmd -N NAME with a port of its own, and no network namespaces are needed.
#
# Environment (read by `up`):
#   FOVEA_SLURM_DIR        DIR where no argument is given     ${TMPDIR:-/tmp}/fovea-slurm-USER
#   FOVEA_SLURM_NODES      number of nodes                    1
#   FOVEA_SLURM_GRACE      seconds from preemption's SIGTERM to the kill   30
#   FOVEA_SLURM_REQUEUE    seconds that a requeued job waits at least (SLURM's own default is 120)   10
#   FOVEA_SLURM_EXTRA      lines added to slurm.conf, e.g. 'SlurmctldParameters=preempt_send_user_signal'
#   FOVEA_SLURM_ACCOUNTING off: no slurmdbd and no database, as on many small clusters   on
#   FOVEA_SLURM_PORT       first of the TCP ports used, on 127.0.0.1 where possible   36810
set -euo pipefail
umask 022

PACKAGES=(slurmctld slurmd slurm-client slurmdbd slurm-wlm-mysql-plugin munge mariadb-server-core)
# mariadb-server-core has the binaries of mariadb-server without its service and its data folder.
PROGRAMS=(slurmctld slurmd srun slurmdbd munged mariadbd)
PATH=$PATH:/usr/sbin:/sbin
HOST=$(uname -n)
HOST=${HOST%%.*}

say() { echo "cluster.sh: $*" >&2; }
die() { say "$*"; exit 1; }
usage() { sed -n '3,9s/^#  \?//p' "$0" >&2; exit 2; }

# --- processes -------------------------------------------------------------------------------------------------------

program_of() { # PID: its program's name; Debian's slurmctld is really slurmctld-wlm
    local exe
    exe=$(readlink "/proc/$1/exe" 2>/dev/null) || return 1
    exe=${exe##*/}
    echo "${exe%-wlm}"
}

pid_of() { # DAEMON: its pid, if it runs (and the pid has not become another program's)
    local pid exe want=$1
    [[ $1 == fovea* ]] && want=slurmd
    pid=$(cat "$D/run/$1.pid" 2>/dev/null) && [[ -n $pid ]] || return 1
    exe=$(program_of "$pid") && [[ $exe == "$want" ]] && echo "$pid"
}

daemons() { echo munged; [[ ! -e $D/db ]] || echo mariadbd slurmdbd; echo slurmctld; seq -f 'fovea%.0f' 0 $(($(<"$D/nodes") - 1)); }

until_true() { # SECONDS COMMAND...: false if the command is still false after SECONDS
    local end=$((SECONDS + $1))
    shift
    until "$@"; do
        ((SECONDS < end)) || return 1
        sleep 0.1
    done
}

answers() { # COMMAND...: wait up to 60 s for COMMAND to be true; false at once if the daemon just launched dies
    local end=$((SECONDS + 60))
    until "$@"; do
        ((SECONDS < end)) && kill -0 "$launched" 2>/dev/null || return 1
        sleep 0.1
    done
}

listens() { (: <"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }
gone() { ! pid_of "$1" >/dev/null; }

launch() { # DAEMON COMMAND...: in the foreground of its own session, so that $! is its pid. A clean environment keeps
    # the caller's SLURM_* out of jobs; closed descriptors keep a pipe or the lock of the caller from being held open.
    local name=$1
    shift
    setsid env -i PATH="$PATH" LANG=C.UTF-8 SLURM_CONF="$SLURM_CONF" "$@" </dev/null >>"$D/log/$name.out" 2>&1 9>&- &
    launched=$! # its file is no proof of life: the daemon writes it anew, and it is empty for a moment
    echo "$launched" >"$D/run/$name.pid"
}

may_mount() { unshare --mount mount --bind "$D/hosts" /etc/hosts 2>/dev/null; }

start() { # DAEMON: start it and wait until it answers; nothing if it runs
    local in_own_mounts=()
    # Jobs connect to each other by node name (MASTER_ADDR): slurmd and its jobs see another /etc/hosts, which has them.
    if may_mount; then # shellcheck disable=SC2016
        in_own_mounts=(unshare --mount --propagation slave sh -c 'mount --bind "$0" /etc/hosts && exec "$@"' "$D/hosts")
    fi
    ! pid_of "$1" >/dev/null || return 0
    case $1 in
        munged)
            launch munged munged --foreground --force --num-threads=2 --socket="$D/munge.sock" --key-file="$D/munge.key" \
                --pid-file="$D/run/munged.pid" --seed-file="$D/munge.seed" --log-file="$D/log/munged.log"
            answers test -S "$D/munge.sock" ;;
        mariadbd) # Debian's settings (--no-defaults) are not wanted, nor durable writes; init.sql makes the user
            launch mariadbd mariadbd --no-defaults --user=root --datadir="$D/db" --socket="$D/db.sock" \
                --pid-file="$D/run/mariadbd.pid" --bind-address=127.0.0.1 --port=$((PORT + 3)) --init-file="$D/init.sql" \
                --skip-name-resolve --innodb-flush-log-at-trx-commit=0 --innodb-buffer-pool-size=64M \
                --innodb-lock-wait-timeout=900 --innodb-use-native-aio=0 --performance-schema=OFF
            answers listens $((PORT + 3)) ;;
        slurmdbd)
            launch slurmdbd slurmdbd -D
            answers listens $((PORT + 2)) ;;
        slurmctld)
            launch slurmctld slurmctld -D
            answers controller_answers ;;
        fovea*)
            launch "$1" "${in_own_mounts[@]}" slurmd -D -N "$1"
            answers listens $((PORT + 10 + ${1#fovea})) ;;
        *) die "no daemon '$1'" ;;
    esac || { tail -n 5 "$D/log/$1".* >&2; die "$1 did not start; see $D/log"; }
}

stop() { # DAEMON: SIGTERM, then SIGKILL. Jobs outlive slurmctld and slurmd, which find them again when restarted.
    local pid
    pid=$(pid_of "$1") || return 0
    kill "$pid"
    until_true 15 gone "$1" || kill -KILL "$pid"
    until_true 5 gone "$1" || die "$1 ($pid) does not die"
}

controller_answers() { scontrol ping 2>/dev/null | grep -q 'is UP'; }

nodes_ready() { # every node of vc_research idle or at work
    local states
    states=$(sinfo -h -p vc_research -N -o '%T' 2>/dev/null) || return 1
    [[ -n $states ]] && ! grep -qvxE 'idle|mixed|allocated|completing' <<<"$states"
}

all_run() {
    local name
    for name in $(daemons); do pid_of "$name" >/dev/null || return 1; done
}

ours() { # pids of all that belongs to the cluster in D: daemons and slurmstepd (they hold a file in D open), tasks (by
    # slurmd's /etc/hosts or their environment), waiting clients (by their environment), and the children of all these
    local proc exe roots=()
    for proc in /proc/[0-9]*; do
        exe=$(program_of "${proc#/proc/}") || continue
        case $exe in
            munged | mariadbd | slurmdbd | slurmctld | slurmd | slurmstepd)
                find "$proc/fd" -lname "$D/*" 2>/dev/null | grep -q . && roots+=("${proc#/proc/}") ;;
            srun | salloc | sbatch) grep -qzxsF "SLURM_CONF=$SLURM_CONF" "$proc/environ" && roots+=("${proc#/proc/}") ;;
            *) # SLURMD_NODENAME is in the environment of tasks and batch scripts, not in that of a shell under salloc
                if [[ $proc/root/etc/hosts -ef $D/hosts ]]; then
                    roots+=("${proc#/proc/}")
                elif grep -qzxsF "SLURM_CONF=$SLURM_CONF" "$proc/environ" && grep -qzs ^SLURMD_NODENAME= "$proc/environ"; then
                    roots+=("${proc#/proc/}")
                fi ;;
        esac
    done
    ps -eo pid=,ppid=,stat= | awk -v roots="${roots[*]}" -v self=$$ '
        BEGIN { n = split(roots, r, " "); for (i = 1; i <= n; i++) in_set[r[i]] = 1 }
        $3 !~ /^Z/ { parent[$1] = $2 }
        END {
            do { more = 0; for (p in parent) if (!(p in in_set) && parent[p] in in_set) { in_set[p] = 1; more = 1 } } while (more)
            for (p in in_set) if (p != self && p in parent) print p
        }'
}

# --- packages and configuration --------------------------------------------------------------------------------------

install_packages() { # once, however many clusters are on their way up: apt-get refuses to run twice
    local installer
    exec {installer}>"${TMPDIR:-/tmp}/fovea-slurm-install.lock"
    flock "$installer"
    install_missing_packages
    exec {installer}>&-
}

install_missing_packages() {
    local program missing=()
    for program in "${PROGRAMS[@]}"; do command -v "$program" >/dev/null || missing+=("$program"); done
    ((${#missing[@]})) || return 0
    command -v apt-get >/dev/null || die "not found: ${missing[*]}; they come with Debian's ${PACKAGES[*]}"
    say "installing ${PACKAGES[*]}"
    # Debian starts the services of a package unless policy-rc.d forbids it; one that is there already is put back.
    local policy=/usr/sbin/policy-rc.d rc=0
    [[ ! -e $policy ]] || mv "$policy" "$policy.fovea-saved"
    trap 'rm -f /usr/sbin/policy-rc.d; [[ ! -e /usr/sbin/policy-rc.d.fovea-saved ]] ||
        mv /usr/sbin/policy-rc.d.fovea-saved /usr/sbin/policy-rc.d' EXIT
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod 755 "$policy"
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        -o Dpkg::Use-Pty=0 "${PACKAGES[@]}"; } </dev/null >"$D/log/apt.out" 2>&1 || rc=$?
    rm -f "$policy"
    [[ ! -e $policy.fovea-saved ]] || mv "$policy.fovea-saved" "$policy"
    trap - EXIT
    ((rc == 0)) || { tail -n 20 "$D/log/apt.out" >&2; die "apt-get failed"; }
}

configure() { # NODES
    local last=$(($1 - 1)) i password
    mkdir -p "$D/spool"
    (umask 077; head -c 1024 /dev/urandom >"$D/munge.key")
    password=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
    for i in {0..7}; do ln -s /dev/null "$D/gpu$i"; done # a GPU count without device files is refused
    echo "NodeName=fovea[0-$last] Name=gpu File=$D/gpu[0-7]" >"$D/gres.conf"
    { cat /etc/hosts 2>/dev/null || true; echo; echo "127.0.0.1 localhost $HOST $(seq -s ' ' -f 'fovea%.0f' 0 "$last")"; } >"$D/hosts"
    (umask 077; cat >"$D/init.sql") <<END
CREATE DATABASE IF NOT EXISTS slurm_acct_db;
CREATE USER IF NOT EXISTS slurm@'127.0.0.1' IDENTIFIED BY '$password';
GRANT ALL ON slurm_acct_db.* TO slurm@'127.0.0.1';
END
    (umask 077; cat >"$D/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=socket=$D/munge.sock
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 2))
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((PORT + 3))
StorageUser=slurm
StoragePass=$password
StorageLoc=slurm_acct_db
LogFile=$D/log/slurmdbd.log
PidFile=$D/run/slurmdbd.pid
END
    # cred_expire is also how long a requeued job waits. A memory limit without cgroups is JobAcctGather's polling; UsePss:
    # pages that forked loaders share count once. ReturnToService=1: a node set down by hand stays down until resumed.
    # NodeHostname and NodeAddr let slurmd -N NAME run here without any name being resolved.
    cat >"$D/slurm.conf" <<END
ClusterName=fovea
SlurmctldHost=$HOST(127.0.0.1)
SlurmctldPort=$((PORT + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$D/munge.sock,cred_expire=${FOVEA_SLURM_REQUEUE:-10}
StateSaveLocation=$D/spool/slurmctld
SlurmdSpoolDir=$D/spool/%n
SlurmctldPidFile=$D/run/slurmctld.pid
SlurmdPidFile=$D/run/%n.pid
SlurmctldLogFile=$D/log/slurmctld.log
SlurmdLogFile=$D/log/%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=1000
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=2
JobAcctGatherParams=OverMemoryKill,UsePss
$(if [[ ${FOVEA_SLURM_ACCOUNTING:-on} == off ]]; then echo AccountingStorageType=accounting_storage/none; else
    echo AccountingStorageType=accounting_storage/slurmdbd
    echo AccountingStorageHost=127.0.0.1
    echo AccountingStoragePort=$((PORT + 2))
    echo "AccountingStoragePass=$D/munge.sock"
fi)
JobRequeue=1
KillWait=5
MessageTimeout=30
SlurmdTimeout=30
BatchStartTimeout=60
SchedulerParameters=bf_interval=5,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=1
GresTypes=gpu
SlurmdParameters=config_overrides
${FOVEA_SLURM_EXTRA:-}
$(for ((i = 0; i <= last; i++)); do
    echo "NodeName=fovea$i NodeHostname=$HOST NodeAddr=127.0.0.1 Port=$((PORT + 10 + i)) CPUs=64 Boards=1" \
        "SocketsPerBoard=1 CoresPerSocket=64 ThreadsPerCore=1 RealMemory=20000 Gres=gpu:8"
done)
PartitionName=vc_research Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=${FOVEA_SLURM_GRACE:-30}
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
END
}

make_database() { # what mariadb-install-db does, which needs the package mariadb-client, less help texts and sys schema
    local sql=/usr/share/mysql
    [[ -e $sql/mysql_system_tables.sql ]] || sql=/usr/share/mariadb
    rm -rf "$D/db"
    mkdir "$D/db"
    { printf '%s;\n' 'CREATE DATABASE mysql' 'USE mysql' 'SET @auth_root_socket=NULL' 'SET @skip_auth_anonymous=1'
        cat "$sql"/{mysql_system_tables,mysql_performance_tables,mysql_system_tables_data}.sql; } |
        mariadbd --no-defaults --bootstrap --user=root --datadir="$D/db" --innodb-flush-log-at-trx-commit=0 \
            --innodb-use-native-aio=0 >"$D/log/bootstrap.out" 2>&1 9>&- || { tail "$D/log/bootstrap.out" >&2; die "no database"; }
}

# --- verbs -----------------------------------------------------------------------------------------------------------

up() {
    local nodes=${FOVEA_SLURM_NODES:-1} name
    [[ $nodes =~ ^[1-9][0-9]?$ ]] || die "FOVEA_SLURM_NODES=$nodes is no number of nodes"
    [[ $D =~ ^[A-Za-z0-9/._+-]+$ ]] || die "$D: such characters cannot stand in SLURM's configuration"
    ((${#D} <= 60)) || die "$D is too long a name: sockets in it could not be opened"
    ((EUID == 0)) || die "must be root"
    if [[ -e $D && ! -e $D/.fovea-slurm ]] && [[ ! -d $D || -n $(ls -A "$D") ]]; then die "$D holds something else"; fi
    mkdir -p "$D/log" "$D/run"
    : >"$D/.fovea-slurm"
    exec 9<"$D"
    flock 9 # two at once: the second waits, then finds it up
    if [[ -e $D/nodes ]]; then
        (($(<"$D/nodes") == nodes)) || die "$D has $(<"$D/nodes") node(s), not $nodes: take it down first"
        PORT=$(<"$D/port")
        if all_run && nodes_ready; then
            say "already up ($nodes node(s), $SECONDS s)"
            echo "export SLURM_CONF=$SLURM_CONF"
            return
        fi
    else
        install_packages
        ! listens $((PORT + 1)) || die "port $((PORT + 1)) is taken: set FOVEA_SLURM_PORT"
        configure "$nodes"
        [[ ${FOVEA_SLURM_ACCOUNTING:-on} == off ]] || make_database
        echo "$PORT" >"$D/port"
        echo "$nodes" >"$D/nodes" # last: from here on, `up` only starts what does not run
    fi
    may_mount || say "no mount namespaces here: jobs cannot resolve node names, so a job cannot span two nodes by name"
    start munged
    if [[ -e $D/db ]]; then
        for name in mariadbd slurmdbd; do start "$name"; done
        sacctmgr -n list cluster format=cluster | grep -qw fovea || sacctmgr -iQ add cluster fovea >/dev/null
    fi
    start slurmctld
    for name in $(daemons); do start "$name"; done
    # Left down or drained by somebody's test? An error for a node that is not.
    nodes_ready || scontrol update nodename=ALL state=resume >/dev/null 2>&1 || true
    until_true 60 nodes_ready || { sinfo -N -l >&2; die "the nodes do not become idle; see $D/log"; }
    say "up after $SECONDS s: $nodes node(s) in $D"
    echo "export SLURM_CONF=$SLURM_CONF"
}

down() {
    local name pid pids
    [[ -e $D ]] || { say "nothing at $D"; return; }
    [[ -e $D/.fovea-slurm ]] || die "$D is not one of mine"
    [[ ! /etc/hosts -ef $D/hosts ]] || die "a job of the cluster cannot take it down"
    # The controller first, lest it start jobs anew. Nothing is worth an orderly end: the folder goes too.
    for name in $([[ ! -e $D/nodes ]] || daemons | tac); do
        if pid=$(pid_of "$name"); then kill -KILL "$pid" 2>/dev/null || true; fi
    done
    for _ in {1..50}; do # children of the daemons, slurmstepd, tasks, clients that wait
        mapfile -t pids < <(ours)
        ((${#pids[@]})) || break
        kill -KILL "${pids[@]}" 2>/dev/null || true
        sleep 0.1
    done
    ((${#pids[@]} == 0)) || die "do not die: ${pids[*]}"
    rm -rf "$D"
    say "down"
}

status() {
    local name pid rc=0
    [[ -e $D/nodes ]] || { echo "no cluster in $D"; return 1; }
    for name in $(daemons); do
        if pid=$(pid_of "$name"); then echo "$name runs ($pid)"; else echo "$name does not run"; rc=1; fi
    done
    return $rc
}

main() {
    local verb=${1:-} what names
    case $verb in
        up | down | status) (($# <= 2)) || usage; D=${2:-} ;;
        start | stop | restart) (($# == 2 || $# == 3)) || usage; what=$2 D=${3:-} ;;
        *) usage ;;
    esac
    D=$(realpath -m "${D:-${FOVEA_SLURM_DIR:-${TMPDIR:-/tmp}/fovea-slurm-$(id -un)}}")
    export SLURM_CONF=$D/slurm.conf
    PORT=${FOVEA_SLURM_PORT:-36810}
    case $verb in
        up | down | status) "$verb" ;;
        *)
            [[ -e $D/nodes ]] || die "no cluster in $D"
            PORT=$(<"$D/port") names=$what
            [[ $what != slurmd ]] || names=$(daemons | grep ^fovea)
            daemons | tr ' ' '\n' | grep -qxF "$(head -n 1 <<<"$names")" || die "no daemon '$what'"
            for name in $names; do
                [[ $verb == start ]] || stop "$name"
                [[ $verb == stop ]] || start "$name"
            done ;;
    esac
}

main "$@"
