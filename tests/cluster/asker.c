/* The workload of the join test: its first act is to connect to the UNIX socket argv[1] and wait for an answer; then it
 * lives on. Statically linked, so that nothing runs before it. */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

int main(int count, char **words)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_STREAM, 0);
	char c;

	if (count < 2 || fd < 0)
		return 2;
	strncpy(address.sun_path, words[1], sizeof(address.sun_path) - 1);
	if (connect(fd, (struct sockaddr *)&address, sizeof(address)))
		return 3;
	if (read(fd, &c, 1) < 0)
		return 4;
	for (;;)
		pause();
}
