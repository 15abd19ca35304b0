/*
 * Plays both guests and the network for a comparer between sockets: writes the frames of many TCP connections to its
 * primary and secondary input, and counts what comes out.
 *
 *     feeder PRIMARY SECONDARY OUT PAYLOAD CONNECTIONS MODE SECONDS
 *
 * MODE: order (the same frames, the secondary never ahead), behind (the secondary 1 to 64 frames behind), segments (behind, and
 * cut at other places of the stream). IP identification differs between the two, as between two kernels.
 *
 * Prints "ready" when the connections are made, waits for a line on standard input, opens the TCP connections, waits for their
 * SYN-ACKs, prints "open", waits for a line again, and sends for SECONDS. At the end: "sent FRAMES received FRAMES ns NANOSECONDS".
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define HEADERS 66 /* Ethernet 14, IPv4 20, TCP 20, timestamps 12 */
#define ISN 1000u /* QEMU's comparer does not go on after 2^32 */
#define WINDOW_BYTES (4 << 20) /* sent by the primary and not out yet: less than any comparer's output queue */
#define CHUNK (256 * 1024)

struct output {
  int fd;
  uint8_t bytes[CHUNK + 2048];
  size_t from, to;
  uint32_t next;      /* connection */
  uint64_t frames;    /* put into `bytes` so far */
  uint32_t *position; /* of each connection's stream */
  uint16_t id;
};

/* What stands at a position of any stream; twice, so that a payload never wraps. */
#define PATTERN 4096
static uint8_t pattern[2 * PATTERN];

static uint32_t connections;
static uint32_t payload;

static void die(const char *what) {
  perror(what);
  exit(1);
}

static int connect_to(const char *path) {
  struct sockaddr_un name = {.sun_family = AF_UNIX};
  int fd = socket(AF_UNIX, SOCK_STREAM, 0);
  strncpy(name.sun_path, path, sizeof name.sun_path - 1);
  if (fd < 0 || connect(fd, (struct sockaddr *)&name, sizeof name) < 0) die(path);
  fcntl(fd, F_SETFL, O_NONBLOCK);
  return fd;
}

static uint64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static void put16(uint8_t *at, uint16_t value) {
  value = htons(value);
  memcpy(at, &value, 2);
}

static void put32(uint8_t *at, uint32_t value) {
  value = htonl(value);
  memcpy(at, &value, 4);
}

/* The IPv4 header's checksum, over 20 bytes with its field 0. */
static uint16_t header_sum(const uint8_t *at) {
  uint32_t sum = 0;
  for (int i = 0; i < 20; i += 2) sum += (uint32_t)at[i] << 8 | at[i + 1];
  sum = (sum & 0xffff) + (sum >> 16);
  return (uint16_t)~((sum & 0xffff) + (sum >> 16));
}

/* Appends one frame with its head. SYN-ACKs have no payload. */
static void append(struct output *o, uint32_t connection, uint32_t seq, uint32_t bytes, int is_syn) {
  uint8_t *f = o->bytes + o->to + 4;
  put32(f - 4, HEADERS + bytes);
  memcpy(f, "\x52\x54\0\0\0\x09\x52\x54\0\0\0\x02\x08\0", 14);
  memset(f + 14, 0, HEADERS - 14);
  f[14] = 0x45;
  put16(f + 16, (uint16_t)(HEADERS - 14 + bytes));
  put16(f + 18, o->id++);
  f[20] = 0x40;
  f[22] = 64;
  f[23] = 6;
  put32(f + 26, 0x0a000002);
  put32(f + 30, 0x0a010009 + connection / 50000);
  put16(f + 24, header_sum(f + 14));
  put16(f + 34, 80);
  put16(f + 36, (uint16_t)(1024 + connection % 50000));
  put32(f + 38, seq);
  put32(f + 42, 5001);
  f[46] = 0x80;
  f[47] = is_syn ? 0x12 : 0x18;
  put16(f + 48, 65535);
  memcpy(f + 54, "\1\1\x08\x0a", 4);
  put32(f + 58, 1000);
  memcpy(f + HEADERS, pattern + seq % PATTERN, bytes);
  o->to += 4 + HEADERS + bytes;
  o->frames++;
}

/* Writes as much as the socket takes. */
static void push(struct output *o) {
  while (o->from < o->to) {
    ssize_t n = write(o->fd, o->bytes + o->from, o->to - o->from);
    if (n < 0) {
      if (errno == EAGAIN) return;
      die("write");
    }
    o->from += (size_t)n;
  }
  o->from = o->to = 0;
}

/* Counts whole frames on their way out. */
static uint64_t pull(int fd, uint64_t *payload_bytes) {
  static uint8_t bytes[512 * 1024];
  static size_t have;
  uint64_t frames = 0;
  for (;;) {
    ssize_t n = read(fd, bytes + have, sizeof bytes - have);
    if (n == 0) {
      fprintf(stderr, "the comparer has closed its output\n");
      exit(1);
    }
    if (n < 0) {
      if (errno == EAGAIN) return frames;
      die("read");
    }
    have += (size_t)n;
    size_t at = 0;
    while (have - at >= 4) {
      uint32_t size;
      memcpy(&size, bytes + at, 4);
      size = ntohl(size);
      if (size < HEADERS || size > 65536) {
        fprintf(stderr, "a frame of %u bytes came out\n", size);
        exit(1);
      }
      if (have - at < 4 + size) break;
      frames++;
      *payload_bytes += size - HEADERS;
      at += 4 + size;
    }
    memmove(bytes, bytes + at, have - at);
    have -= at;
  }
}

static void wait_line(const char *word) {
  char line[16];
  printf("%s\n", word);
  fflush(stdout);
  if (fgets(line, sizeof line, stdin) == NULL) exit(1);
}

int main(int argc, char **argv) {
  static struct output primary, secondary;
  if (argc != 8) return 64;
  primary.fd = connect_to(argv[1]);
  secondary.fd = connect_to(argv[2]);
  int out = connect_to(argv[3]);
  payload = (uint32_t)atoi(argv[4]);
  connections = (uint32_t)atoi(argv[5]);
  int is_behind = strcmp(argv[6], "order") != 0;
  int is_cut = strcmp(argv[6], "segments") == 0;
  uint64_t duration = (uint64_t)(atof(argv[7]) * 1e9);
  uint32_t cut = is_cut ? payload * 3 / 4 / 4 * 4 : payload;
  for (uint32_t i = 0; i < PATTERN; i++) pattern[i] = pattern[i + PATTERN] = (uint8_t)(i * 2654435761u >> 24);
  primary.position = calloc(connections, 4);
  secondary.position = calloc(connections, 4);
  secondary.id = 30000;
  wait_line("ready");

  uint64_t received = 0, bytes_out = 0, bytes_in = 0, sent = 0;
  /* Few at a time: QEMU's comparer loses frames that its output does not take at once. */
  uint64_t deadline = now_ns() + 20000000000u;
  for (uint32_t c = 0; received < connections;) {
    for (; c < connections && c < received + 64; c++) {
      append(&primary, c, ISN, 0, 1);
      append(&secondary, c, ISN, 0, 1);
    }
    push(&primary);
    push(&secondary);
    struct pollfd p = {.fd = out, .events = POLLIN};
    poll(&p, 1, 100);
    received += pull(out, &bytes_out);
    if (now_ns() > deadline) {
      fprintf(stderr, "%lu of %u SYN-ACKs came out\n", (unsigned long)received, connections);
      return 1;
    }
  }
  wait_line("open");

  received = bytes_out = primary.frames = secondary.frames = 0;
  uint64_t start = now_ns(), last = start, stalled = start;
  uint64_t window = WINDOW_BYTES / (HEADERS + payload);
  /* Cut elsewhere, each connection must be a frame ahead before the secondary has something to send. */
  if (is_cut && window < 4 * (uint64_t)connections) window = 4 * (uint64_t)connections;
  uint32_t random = 1, lag = is_behind ? 1 : 0;
  int sending = 1;
  while (sending || received < primary.frames) {
    uint64_t t = now_ns();
    if (sending && t - start >= duration) sending = 0;
    if (primary.to == 0 && sending) {
      while (primary.to < CHUNK && primary.frames < received + window) {
        uint32_t c = primary.next++ % connections;
        append(&primary, c, ISN + 1 + primary.position[c], payload, 0);
        primary.position[c] += payload;
        bytes_in += payload;
      }
    }
    push(&primary);
    if (secondary.to == 0) {
      random = random * 1103515245u + 12345u;
      if (is_behind) lag = 1 + (random >> 16) % 64;
      uint64_t held = (primary.to - primary.from) / (4 + HEADERS + payload) + 1;
      uint64_t limit = (sending ? (primary.frames > lag + held ? primary.frames - lag - held : 0) : primary.frames) * payload;
      uint32_t idle = 0;
      while (secondary.to < CHUNK && sent < limit && idle < connections) {
        uint32_t c = secondary.next++ % connections;
        uint32_t left = primary.position[c] - secondary.position[c];
        uint32_t bytes = left < cut ? left : cut;
        if (bytes == 0 || (bytes < cut && sending)) {
          idle++;
          if (is_cut) continue;
          secondary.next--;
          break;
        }
        idle = 0;
        append(&secondary, c, ISN + 1 + secondary.position[c], bytes, 0);
        secondary.position[c] += bytes;
        sent += bytes;
      }
    }
    push(&secondary);
    uint64_t frames = pull(out, &bytes_out);
    received += frames;
    if (frames > 0) {
      last = stalled = now_ns();
      continue;
    }
    if (now_ns() - stalled > 15000000000u) {
      fprintf(stderr, "stalled: %lu of %lu frames came out\n", (unsigned long)received, (unsigned long)primary.frames);
      return 1;
    }
    struct pollfd p[3] = {{.fd = out, .events = POLLIN},
                          {.fd = primary.fd, .events = primary.to > 0 ? POLLOUT : 0},
                          {.fd = secondary.fd, .events = secondary.to > 0 ? POLLOUT : 0}};
    poll(p, 3, 1);
  }
  printf("sent %lu received %lu bytes %lu of %lu ns %lu\n", (unsigned long)primary.frames, (unsigned long)received,
         (unsigned long)bytes_out, (unsigned long)bytes_in, (unsigned long)(last - start));
  return 0;
}
