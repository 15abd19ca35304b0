/*
 * What a comparer between sockets costs at least: reads both inputs, compares the transport part of each pair of frames with
 * memcmp, writes the primary's frames in one piece as far as they are equal. Knows neither connections nor lost segments.
 *
 *     relay PRIMARY SECONDARY OUT        Unix sockets that it listens on
 */
#include <arpa/inet.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define ROOM (512 * 1024)
#define L4 34 /* Ethernet and IPv4 header */

struct input {
  int fd;
  uint8_t bytes[ROOM];
  size_t from, to;
};

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int listen_at(const char *path) {
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  strncpy(name.sun_path, path, sizeof name.sun_path - 1);
  if (fd < 0 || bind(fd, (struct sockaddr *)&name, sizeof name) < 0 || listen(fd, 1) < 0) die(path);
  return fd;
}

static void fill(struct input *in) {
  memmove(in->bytes, in->bytes + in->from, in->to - in->from);
  in->to -= in->from;
  in->from = 0;
  ssize_t n = read(in->fd, in->bytes + in->to, ROOM - in->to);
  if (n <= 0) exit(0);
  in->to += (size_t)n;
}

/* Bytes of the whole frame at `at`, its head included; 0 when it is not whole. */
static size_t frame_at(const struct input *in, size_t at) {
  uint32_t size;
  if (in->to - at < 4) return 0;
  memcpy(&size, in->bytes + at, 4);
  size = ntohl(size) + 4;
  return in->to - at < size ? 0 : size;
}

static void write_all(int fd, const uint8_t *bytes, size_t length) {
  while (length > 0) {
    ssize_t n = write(fd, bytes, length);
    if (n < 0) die("write");
    bytes += n;
    length -= (size_t)n;
  }
}

int main(int argc, char **argv) {
  static struct input primary, secondary;
  if (argc != 4) return 64;
  int listeners[3];
  for (int i = 0; i < 3; i++) listeners[i] = listen_at(argv[1 + i]);
  primary.fd = accept(listeners[0], NULL, NULL);
  secondary.fd = accept(listeners[1], NULL, NULL);
  int out = accept(listeners[2], NULL, NULL);
  for (;;) {
    size_t p = primary.from, s = secondary.from, a, b;
    while ((a = frame_at(&primary, p)) != 0 && (b = frame_at(&secondary, s)) != 0) {
      if (a != b || memcmp(primary.bytes + p + 4 + L4, secondary.bytes + s + 4 + L4, a - 4 - L4) != 0) {
        fprintf(stderr, "the inputs differ\n");
        return 1;
      }
      p += a;
      s += b;
    }
    if (p > primary.from) write_all(out, primary.bytes + primary.from, p - primary.from);
    primary.from = p;
    secondary.from = s;
    /* A full buffer waits for the other side. */
    struct pollfd polls[2] = {{.fd = frame_at(&primary, p) == 0 ? primary.fd : -1, .events = POLLIN},
                              {.fd = frame_at(&secondary, s) == 0 ? secondary.fd : -1, .events = POLLIN}};
    if (primary.to - primary.from < ROOM / 2) polls[0].fd = primary.fd;
    if (secondary.to - secondary.from < ROOM / 2) polls[1].fd = secondary.fd;
    if (poll(polls, 2, -1) < 0) die("poll");
    if (polls[0].revents != 0) fill(&primary);
    if (polls[1].revents != 0) fill(&secondary);
  }
}
