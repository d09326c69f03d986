/* Processes that do one awkward thing each, on demand: lab COMMAND [ARGUMENT…].
 *
 * Whatever must stay alive does so until its standard input ends. PIDs that the test needs are printed, a line each.
 */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* struct clone_args (clone3(2)), whose header not every libc has. */
struct clone_arguments {
	unsigned long long flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid,
		set_tid_size, cgroup;
};
#define INTO_CGROUP 0x200000000ULL

static void until_eof(void)
{
	char c;

	while (read(0, &c, 1) > 0)
		;
}

static void say(long number)
{
	printf("%ld\n", number);
	fflush(stdout);
}

static void die(const char *what)
{
	perror(what);
	exit(99);
}

static pid_t clone_with(struct clone_arguments *arguments)
{
	pid_t pid;

	arguments->exit_signal = SIGCHLD;
	pid = syscall(SYS_clone3, arguments, sizeof(*arguments));
	if (pid < 0)
		die("clone3");
	return pid;
}

static void wait_for(pid_t pid)
{
	if (waitpid(pid, NULL, 0) != pid)
		die("waitpid");
}

static void *exec_from_thread(void *path)
{
	execl(path, path, "pause", NULL);
	die("execl");
	return NULL;
}

static void *live_on(void *unused)
{
	until_eof();
	return unused;
}

static void *linger(void *unused)
{
	usleep(1000);
	return unused;
}

static void write_pid(const char *file, pid_t pid)
{
	char text[16];
	int fd = open(file, O_WRONLY), size = snprintf(text, sizeof(text), "%d", pid);

	if (fd < 0 || write(fd, text, size) != size)
		die(file);
	close(fd);
}

static void nap(long microseconds)
{
	struct timespec start, now;

	clock_gettime(CLOCK_MONOTONIC, &start);
	do
		clock_gettime(CLOCK_MONOTONIC, &now);
	while ((now.tv_sec - start.tv_sec) * 1000000 + (now.tv_nsec - start.tv_nsec) / 1000 < microseconds);
}

int main(int count, char **words)
{
	const char *command = count > 1 ? words[1] : "";
	struct clone_arguments arguments;
	pthread_t thread;
	pid_t pid, wanted;
	int i;

	memset(&arguments, 0, sizeof(arguments));
	if (!strcmp(command, "pause")) { /* lives until end of file */
		until_eof();
	} else if (!strcmp(command, "thread-exec")) { /* a thread that is not the leader execs "pause" */
		pthread_create(&thread, NULL, exec_from_thread, "/proc/self/exe");
		pthread_join(thread, NULL);
	} else if (!strcmp(command, "thread")) { /* prints the ID of a thread that lives until end of file */
		pthread_create(&thread, NULL, live_on, NULL);
		usleep(1000);
		say(getpid() + 0L);
		pthread_join(thread, NULL);
	} else if (!strcmp(command, "dead-leader")) { /* the leader ends, a thread lives until end of file */
		pthread_create(&thread, NULL, live_on, NULL);
		pthread_exit(NULL);
	} else if (!strcmp(command, "many-threads")) { /* 16 threads that end at about the same time as the leader */
		for (i = 0; i < 16; i++)
			pthread_create(&thread, NULL, linger, NULL);
		usleep(1000);
		pthread_exit(NULL);
	} else if (!strcmp(command, "vfork")) { /* prints the PID of a vforked child that execs "pause" */
		pid = vfork();
		if (pid == 0) {
			execl("/proc/self/exe", "lab", "pause", NULL);
			_exit(99);
		}
		say(pid);
		wait_for(pid);
	} else if (!strcmp(command, "into-cgroup")) { /* FOLDER: a child born there, without an attach */
		arguments.flags = INTO_CGROUP;
		arguments.cgroup = open(words[2], O_RDONLY | O_DIRECTORY);
		pid = clone_with(&arguments);
		if (pid == 0) {
			until_eof();
			_exit(0);
		}
		say(pid);
		wait_for(pid);
	} else if (!strcmp(command, "with-pid")) { /* PID: a child of exactly that PID, in our PID namespace */
		wanted = atoi(words[2]);
		arguments.set_tid = (unsigned long)&wanted;
		arguments.set_tid_size = 1;
		pid = clone_with(&arguments);
		if (pid == 0) {
			until_eof();
			_exit(0);
		}
		say(pid);
		wait_for(pid);
	} else if (!strcmp(command, "zombie")) { /* a child that has ended and is not waited for */
		pid = fork();
		if (pid == 0)
			_exit(0);
		usleep(10000);
		say(pid);
		until_eof();
		wait_for(pid);
	} else if (!strcmp(command, "forks")) { /* N: that many children that end at once; prints when done */
		for (i = atoi(words[2]); i > 0; i--) {
			pid = fork();
			if (pid == 0)
				_exit(0);
			wait_for(pid);
		}
		say(0);
		until_eof();
	} else if (!strcmp(command, "race")) { /* PROCS N: N children that exec while they are moved to PROCS */
		srand(1);
		for (i = atoi(words[3]); i > 0; i--) {
			pid = fork();
			if (pid == 0) {
				prctl(PR_SET_PDEATHSIG, SIGKILL);
				execl("/proc/self/exe", "lab", "sleep", NULL);
				_exit(99);
			}
			nap(rand() % 600);
			write_pid(words[2], pid);
			say(pid);
		}
		say(0);
		until_eof(); /* the children die with us */
	} else if (!strcmp(command, "sleep")) { /* lives until killed */
		for (;;)
			pause();
	} else {
		fprintf(stderr, "lab: no command %s\n", command);
		return 2;
	}
	return 0;
}
