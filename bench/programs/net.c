/* One TCP stream to a server of the host's (bench/rows/network.py), as iperf3's: out or in, 128 KiB at a time.
 * "net SHARE out|in ADDRESS PORT MEGABYTES" */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include "bench.h"

static char buffer[128 << 10];

int main(int argc, char **argv)
{
    if (argc != 6)
        return 2;
    int out = argv[2][0] == 'o', sock = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(atoi(argv[4]))};
    uint64_t size = (uint64_t)work_amount(argc, argv, atol(argv[5])) << 20, left = size, sum = 0;
    uint64_t order[2] = {out, size};
    for (size_t i = 0; i < sizeof(buffer); i++)
        buffer[i] = (char)(i * 7 + i / 251);
    if (sock < 0 || !inet_aton(argv[3], &to.sin_addr) || connect(sock, (struct sockaddr *)&to, sizeof(to)) ||
        write(sock, order, sizeof(order)) != sizeof(order))
        return 1;
    work_begin();
    while (left) {
        size_t part = left < sizeof(buffer) ? left : sizeof(buffer);
        ssize_t done = out ? write(sock, buffer, part) : read(sock, buffer, part);
        if (done <= 0)
            return 1;
        left -= (uint64_t)done;
    }
    /* The server says how much it has: what is in buffers yet isn't there. */
    if (out && (shutdown(sock, SHUT_WR) || read(sock, &sum, 8) != 8))
        return 1;
    work_end(out ? sum : size);
    return 0;
}
