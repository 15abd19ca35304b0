/*
 * The guest of `colo-proxy lab --guest qemu`: process 1 of a machine that has nothing else. Loads the network card's
 * driver, takes the guest's addresses, and serves what the lab's clients ask for:
 *
 *   TCP 80   HTTP/1.1: GET /bytes/N?seed=S, GET /random, PUT /upload (answers a chain digest and the length), GET /memory,
 *            GET /written
 *   TCP 7    echo; UDP 7 too
 *   TCP 13   greets, then echoes
 *
 * Content and digest are those of src/lab/content.ts. What is answered depends on the request alone, except for /random,
 * whose answers are written to the console too, and /written.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define GUEST_IPV4 "10.77.0.2"
#define GUEST_IPV6 "fd77::2"
#define GREETING "colo-proxy lab guest ready\n"

/* ---------------------------------------------------------------- SHA-256 (FIPS 180-4) */

struct sha256 {
    uint32_t h[8];
    uint64_t bytes;
    uint8_t block[64];
};

static const uint32_t K[64] = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
    0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
    0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
    0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
    0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
    0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
    0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2,
};

static uint32_t rotate(uint32_t x, int n) { return x >> n | x << (32 - n); }

static void sha256_block(struct sha256 *s, const uint8_t *p)
{
    uint32_t w[64], v[8];
    for (int i = 0; i < 16; i++)
        w[i] = (uint32_t)p[4 * i] << 24 | p[4 * i + 1] << 16 | p[4 * i + 2] << 8 | p[4 * i + 3];
    for (int i = 16; i < 64; i++) {
        uint32_t a = w[i - 15], b = w[i - 2];
        w[i] = w[i - 16] + (rotate(a, 7) ^ rotate(a, 18) ^ a >> 3) + w[i - 7] +
               (rotate(b, 17) ^ rotate(b, 19) ^ b >> 10);
    }
    memcpy(v, s->h, sizeof v);
    for (int i = 0; i < 64; i++) {
        uint32_t e = v[4], a = v[0];
        uint32_t t1 = v[7] + (rotate(e, 6) ^ rotate(e, 11) ^ rotate(e, 25)) +
                      ((e & v[5]) ^ (~e & v[6])) + K[i] + w[i];
        uint32_t t2 = (rotate(a, 2) ^ rotate(a, 13) ^ rotate(a, 22)) +
                      ((a & v[1]) ^ (a & v[2]) ^ (v[1] & v[2]));
        memmove(v + 1, v, 7 * sizeof *v);
        v[4] += t1;
        v[0] = t1 + t2;
    }
    for (int i = 0; i < 8; i++)
        s->h[i] += v[i];
}

static void sha256_init(struct sha256 *s)
{
    static const uint32_t start[8] = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                      0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
    memcpy(s->h, start, sizeof start);
    s->bytes = 0;
}

static void sha256_add(struct sha256 *s, const uint8_t *p, size_t n)
{
    while (n > 0) {
        size_t at = s->bytes % 64, count = 64 - at < n ? 64 - at : n;
        memcpy(s->block + at, p, count);
        s->bytes += count;
        p += count;
        n -= count;
        if (s->bytes % 64 == 0)
            sha256_block(s, s->block);
    }
}

static void sha256_end(struct sha256 *s, uint8_t out[32])
{
    uint64_t bits = s->bytes * 8;
    uint8_t pad[72] = {0x80};
    size_t zeros = (119 - s->bytes % 64) % 64;
    for (int i = 0; i < 8; i++)
        pad[1 + zeros + i] = bits >> (56 - 8 * i);
    sha256_add(s, pad, 1 + zeros + 8);
    for (int i = 0; i < 32; i++)
        out[i] = s->h[i / 4] >> (24 - 8 * (i % 4));
}

static void to_hex(const uint8_t *bytes, int count, char *text)
{
    for (int i = 0; i < count; i++)
        sprintf(text + 2 * i, "%02x", bytes[i]);
}

/* ---------------------------------------------------------------- content (src/lab/content.ts, src/base/prng.ts) */

#define PATTERN_BYTES 1048573
#define PATTERNS_MAX 8

struct pattern {
    uint64_t seed;
    uint8_t *bytes;
};

static const uint8_t *pattern_of(uint64_t seed)
{
    static struct pattern patterns[PATTERNS_MAX];
    static int count, oldest;
    for (int i = 0; i < count; i++)
        if (patterns[i].seed == seed)
            return patterns[i].bytes;
    int at = count < PATTERNS_MAX ? count++ : oldest++ % PATTERNS_MAX;
    if (patterns[at].bytes == NULL)
        patterns[at].bytes = malloc(PATTERN_BYTES);
    patterns[at].seed = seed;
    uint32_t a = 0, b = seed, c = seed >> 32, counter = 1;
    for (int i = -12; i < PATTERN_BYTES; i++) {
        uint32_t sum = a + b + counter++;
        a = b ^ b >> 9;
        b = c + (c << 3);
        c = (c << 21 | c >> 11) + sum;
        if (i >= 0)
            patterns[at].bytes[i] = sum;
    }
    return patterns[at].bytes;
}

/* ---------------------------------------------------------------- memory that each guest writes in its own way */

/*
 * Pages that are written all the time with what only this guest knows, and a table of what each must hold: after a
 * checkpoint that has not copied every page, page and table contradict each other.
 */
#define MEMORY_PAGES 2048
#define MEMORY_WORDS 512
#define WRITTEN_PAGES_EACH 8
#define WRITE_INTERVAL_MS 20

static uint64_t memory[MEMORY_PAGES][MEMORY_WORDS], memory_seeds[MEMORY_PAGES];
static uint64_t memory_written;

static uint64_t next_word(uint64_t word) { return word * 6364136223846793005u + 1442695040888963407u; }

static void write_memory(void)
{
    for (int i = 0; i < WRITTEN_PAGES_EACH; i++) {
        int page = memory_written++ % MEMORY_PAGES;
        uint64_t word = memory_seeds[page] = memory_seeds[page] * 31 + __builtin_ia32_rdtsc();
        for (int j = 0; j < MEMORY_WORDS; j++)
            memory[page][j] = word = next_word(word);
    }
}

static int wrong_pages(void)
{
    int wrong = 0;
    for (int page = 0; page < MEMORY_PAGES; page++) {
        uint64_t word = memory_seeds[page];
        int j = 0;
        while (j < MEMORY_WORDS && memory[page][j] == (word = next_word(word)))
            j++;
        wrong += j < MEMORY_WORDS;
    }
    return wrong;
}

/* ---------------------------------------------------------------- connections */

enum service { HTTP, ECHO, GREETER };

#define CONNECTIONS_MAX 256
#define HEAD_BYTES_MAX 4096
#define CHAIN_BLOCK_BYTES 65536
#define OUT_BYTES_MAX 65536

struct connection {
    int fd;
    enum service service;
    /* Small answers and echoes that the socket has not taken yet. */
    uint8_t out[OUT_BYTES_MAX];
    size_t out_bytes;
    /* Content that is sent after them. */
    uint64_t content_seed, content_at, content_left;
    char head[HEAD_BYTES_MAX + 1];
    size_t head_bytes;
    /* Body that is received. */
    uint64_t body_left, body_bytes;
    uint8_t chain[32];
    uint8_t *chain_block;
    size_t chain_filled;
    int ended;
};

static struct connection *connections[CONNECTIONS_MAX];
static int connection_count;

static void put(struct connection *c, const void *bytes, size_t count)
{
    if (count > OUT_BYTES_MAX - c->out_bytes)
        count = OUT_BYTES_MAX - c->out_bytes;
    memcpy(c->out + c->out_bytes, bytes, count);
    c->out_bytes += count;
}

static void respond(struct connection *c, const char *status, const char *body, uint64_t bytes)
{
    char head[256];
    int count = snprintf(head, sizeof head,
                         "HTTP/1.1 %s\r\nServer: colo-proxy-lab\r\nContent-Length: %llu\r\n"
                         "Connection: keep-alive\r\n\r\n",
                         status, (unsigned long long)bytes);
    put(c, head, count);
    if (body != NULL)
        put(c, body, bytes);
}

static void chain_close(struct connection *c)
{
    struct sha256 s;
    sha256_init(&s);
    sha256_add(&s, c->chain, 32);
    sha256_add(&s, c->chain_block, c->chain_filled);
    sha256_end(&s, c->chain);
    c->chain_filled = 0;
}

static void on_body(struct connection *c, const uint8_t *p, size_t n)
{
    c->body_left -= n;
    while (n > 0) {
        size_t room = CHAIN_BLOCK_BYTES - c->chain_filled, count = room < n ? room : n;
        memcpy(c->chain_block + c->chain_filled, p, count);
        c->chain_filled += count;
        p += count;
        n -= count;
        if (c->chain_filled == CHAIN_BLOCK_BYTES)
            chain_close(c);
    }
    if (c->body_left > 0)
        return;
    char hex[65], text[100];
    chain_close(c);
    to_hex(c->chain, 32, hex);
    int count = snprintf(text, sizeof text, "%s %llu\n", hex, (unsigned long long)c->body_bytes);
    respond(c, "200 OK", text, count);
}

/* Both guests may run from one and the same state: their clocks differ. */
static void respond_random(struct connection *c)
{
    struct {
        uint8_t random[16];
        struct timespec time;
        uint64_t cycles;
    } seed;
    struct sha256 s;
    uint8_t digest[32];
    char text[34];
    memset(&seed, 0, sizeof seed);
    if (syscall(SYS_getrandom, seed.random, sizeof seed.random, 4 /* GRND_INSECURE */) < 0)
        memset(seed.random, 0, sizeof seed.random);
    clock_gettime(CLOCK_MONOTONIC, &seed.time);
    seed.cycles = __builtin_ia32_rdtsc();
    sha256_init(&s);
    sha256_add(&s, (const uint8_t *)&seed, sizeof seed);
    sha256_end(&s, digest);
    to_hex(digest, 16, text);
    text[32] = '\n';
    printf("guest: token %.32s\n", text);
    fflush(stdout);
    respond(c, "200 OK", text, 33);
}

static void respond_number(struct connection *c, const char *format, unsigned long long number)
{
    char text[64];
    int count = snprintf(text, sizeof text, format, number);
    respond(c, "200 OK", text, count);
}

static void on_request(struct connection *c, char *head)
{
    char method[8], target[256];
    if (sscanf(head, "%7s %255s", method, target) != 2) {
        respond(c, "400 Bad Request", NULL, 0);
        c->ended = 1;
    } else if (strcmp(method, "PUT") == 0) {
        char *length = strcasestr(head, "\r\ncontent-length:");
        c->body_bytes = c->body_left = length == NULL ? 0 : strtoull(length + 17, NULL, 10);
        memset(c->chain, 0, 32);
        c->chain_filled = 0;
        if (c->chain_block == NULL)
            c->chain_block = malloc(CHAIN_BLOCK_BYTES);
        if (c->body_left == 0)
            on_body(c, NULL, 0);
    } else if (strncmp(target, "/bytes/", 7) == 0) {
        char *seed = strstr(target, "seed="), *offset = strstr(target, "offset=");
        c->content_left = strtoull(target + 7, NULL, 10);
        c->content_seed = seed == NULL ? 1 : strtoull(seed + 5, NULL, 10);
        c->content_at = offset == NULL ? 0 : strtoull(offset + 7, NULL, 10);
        respond(c, "200 OK", NULL, c->content_left);
    } else if (strcmp(target, "/random") == 0) {
        respond_random(c);
    } else if (strcmp(target, "/memory") == 0) {
        respond_number(c, "%llu wrong pages\n", wrong_pages());
    } else if (strcmp(target, "/written") == 0) {
        respond_number(c, "%llu pages written\n", memory_written);
    } else {
        respond(c, "404 Not Found", NULL, 0);
    }
}

static void on_http(struct connection *c, const uint8_t *p, size_t n)
{
    while (n > 0 && !c->ended) {
        if (c->body_left > 0) {
            size_t count = c->body_left < n ? c->body_left : n;
            on_body(c, p, count);
            p += count;
            n -= count;
            continue;
        }
        if (c->head_bytes == HEAD_BYTES_MAX) {
            c->ended = 1;
            return;
        }
        c->head[c->head_bytes++] = *p++;
        n--;
        c->head[c->head_bytes] = 0;
        if (c->head_bytes >= 4 && memcmp(c->head + c->head_bytes - 4, "\r\n\r\n", 4) == 0) {
            on_request(c, c->head);
            c->head_bytes = 0;
        }
    }
}

static void close_connection(int index)
{
    struct connection *c = connections[index];
    close(c->fd);
    free(c->chain_block);
    free(c);
    connections[index] = connections[--connection_count];
}

static int wants_write(const struct connection *c) { return c->out_bytes > 0 || c->content_left > 0; }

/* Returns 0 when the connection is over. */
static int write_some(struct connection *c)
{
    while (wants_write(c)) {
        const uint8_t *from = c->out;
        size_t count = c->out_bytes;
        if (count == 0) {
            size_t at = c->content_at % PATTERN_BYTES;
            from = pattern_of(c->content_seed) + at;
            count = PATTERN_BYTES - at < c->content_left ? PATTERN_BYTES - at : c->content_left;
        }
        ssize_t sent = send(c->fd, from, count, MSG_NOSIGNAL);
        if (sent < 0)
            return errno == EAGAIN || errno == EINTR;
        if (c->out_bytes > 0) {
            c->out_bytes -= sent;
            memmove(c->out, c->out + sent, c->out_bytes);
        } else {
            c->content_at += sent;
            c->content_left -= sent;
        }
    }
    if (c->ended)
        shutdown(c->fd, SHUT_WR);
    return !c->ended;
}

static int read_some(struct connection *c)
{
    static uint8_t buffer[OUT_BYTES_MAX];
    size_t room = OUT_BYTES_MAX - c->out_bytes;
    ssize_t count = recv(c->fd, buffer, c->service == HTTP ? sizeof buffer : room, 0);
    if (count < 0)
        return errno == EAGAIN || errno == EINTR;
    if (count == 0)
        c->ended = 1;
    else if (c->service == HTTP)
        on_http(c, buffer, count);
    else
        put(c, buffer, count);
    return write_some(c);
}

static void accept_all(int listener, enum service service)
{
    int one = 1, fd;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (connection_count == CONNECTIONS_MAX) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        c->service = service;
        connections[connection_count++] = c;
        if (service == GREETER) {
            put(c, GREETING, strlen(GREETING));
            write_some(c);
        }
    }
}

static void echo_datagrams(int fd)
{
    static uint8_t buffer[65536];
    struct sockaddr_in6 from;
    socklen_t length = sizeof from;
    ssize_t count;
    while ((count = recvfrom(fd, buffer, sizeof buffer, MSG_DONTWAIT, (void *)&from, &length)) >= 0) {
        sendto(fd, buffer, count, 0, (void *)&from, length);
        length = sizeof from;
    }
}

/* ---------------------------------------------------------------- the machine */

static void die(const char *what)
{
    printf("guest: %s: %s\n", what, strerror(errno));
    fflush(stdout);
    for (;;)
        pause();
}

static void write_file(const char *path, const char *text)
{
    int fd = open(path, O_WRONLY);
    if (fd < 0)
        return;
    if (write(fd, text, strlen(text)) < 0)
        printf("guest: %s not written\n", path);
    close(fd);
}

static void load_drivers(void)
{
    static const char *const names[] = {"virtio_ring", "virtio", "virtio_pci_modern_dev",
                                        "virtio_pci_legacy_dev", "virtio_pci", "failover",
                                        "net_failover", "virtio_net"};
    for (unsigned i = 0; i < sizeof names / sizeof *names; i++) {
        char path[64];
        snprintf(path, sizeof path, "/%s.ko", names[i]);
        int fd = open(path, O_RDONLY);
        /* Built into the kernel, perhaps. */
        if (fd < 0)
            continue;
        if (syscall(SYS_finit_module, fd, "", 0) < 0 && errno != EEXIST)
            die(path);
        close(fd);
    }
}

struct in6_ifreq_of_linux {
    struct in6_addr address;
    uint32_t prefix_length;
    int index;
};

static void bring_up(int fd, const char *name)
{
    struct ifreq request;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, name);
    request.ifr_flags = IFF_UP | IFF_RUNNING;
    if (ioctl(fd, SIOCSIFFLAGS, &request) < 0)
        die(name);
}

static void set_addresses(void)
{
    int tries = 0, fd4 = socket(AF_INET, SOCK_DGRAM, 0), fd6 = socket(AF_INET6, SOCK_DGRAM, 0);
    while (if_nametoindex("eth0") == 0) {
        if (tries++ == 1000)
            die("eth0");
        usleep(10000);
    }
    static const char *const settings[] = {"accept_dad", "dad_transmits", "router_solicitations",
                                           "accept_ra", "autoconf"};
    for (unsigned i = 0; i < sizeof settings / sizeof *settings; i++) {
        char path[96];
        snprintf(path, sizeof path, "/proc/sys/net/ipv6/conf/eth0/%s", settings[i]);
        write_file(path, "0");
    }
    /* Without a link-local address the guest says nothing of its own accord. */
    write_file("/proc/sys/net/ipv6/conf/eth0/addr_gen_mode", "1");
    struct ifreq request;
    struct sockaddr_in *address = (struct sockaddr_in *)&request.ifr_addr;
    memset(&request, 0, sizeof request);
    strcpy(request.ifr_name, "eth0");
    address->sin_family = AF_INET;
    inet_pton(AF_INET, GUEST_IPV4, &address->sin_addr);
    if (ioctl(fd4, SIOCSIFADDR, &request) < 0)
        die(GUEST_IPV4);
    inet_pton(AF_INET, "255.255.255.0", &address->sin_addr);
    if (ioctl(fd4, SIOCSIFNETMASK, &request) < 0)
        die("netmask");
    bring_up(fd4, "lo");
    bring_up(fd4, "eth0");
    struct in6_ifreq_of_linux request6 = {.prefix_length = 64, .index = if_nametoindex("eth0")};
    inet_pton(AF_INET6, GUEST_IPV6, &request6.address);
    if (ioctl(fd6, SIOCSIFADDR, &request6) < 0)
        die(GUEST_IPV6);
    close(fd4);
    close(fd6);
}

static int open_socket(int type, int port)
{
    struct sockaddr_in6 any = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    int fd = socket(AF_INET6, type | SOCK_NONBLOCK, 0);
    if (fd < 0 || bind(fd, (void *)&any, sizeof any) < 0)
        die("bind");
    if (type == SOCK_STREAM && listen(fd, 1024) < 0)
        die("listen");
    return fd;
}

static uint64_t now_ms(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000ull + time.tv_nsec / 1000000;
}

int main(void)
{
    mkdir("/proc", 0755);
    mkdir("/dev", 0755);
    mount("proc", "/proc", "proc", 0, NULL);
    mount("devtmpfs", "/dev", "devtmpfs", 0, NULL);
    int console = open("/dev/ttyS0", O_WRONLY);
    if (console >= 0)
        dup2(console, 1);
    load_drivers();
    set_addresses();
    int listeners[3] = {open_socket(SOCK_STREAM, 80), open_socket(SOCK_STREAM, 7),
                        open_socket(SOCK_STREAM, 13)};
    int udp = open_socket(SOCK_DGRAM, 7);
    for (int i = 0; i < MEMORY_PAGES / WRITTEN_PAGES_EACH; i++)
        write_memory();
    uint64_t next_write_ms = 0;
    printf("guest: ready\n");
    fflush(stdout);
    for (;;) {
        static struct pollfd polled[4 + CONNECTIONS_MAX];
        int count = connection_count;
        for (int i = 0; i < 3; i++)
            polled[i] = (struct pollfd){.fd = listeners[i], .events = POLLIN};
        polled[3] = (struct pollfd){.fd = udp, .events = POLLIN};
        for (int i = 0; i < count; i++) {
            const struct connection *c = connections[i];
            int events = wants_write(c) ? POLLOUT : 0;
            /* Answers are small beside what is asked for: read on only when they are out. */
            if (c->out_bytes < OUT_BYTES_MAX / 2 && c->content_left == 0)
                events |= POLLIN;
            polled[4 + i] = (struct pollfd){.fd = c->fd, .events = events};
        }
        if (poll(polled, 4 + count, WRITE_INTERVAL_MS) < 0)
            continue;
        if (now_ms() >= next_write_ms) {
            next_write_ms = now_ms() + WRITE_INTERVAL_MS;
            write_memory();
        }
        for (int i = count - 1; i >= 0; i--) {
            struct connection *c = connections[i];
            int events = polled[4 + i].revents, alive = 1;
            if (events & POLLOUT)
                alive = write_some(c);
            if (alive && (events & (POLLIN | POLLHUP | POLLERR)))
                alive = read_some(c);
            if (!alive)
                close_connection(i);
        }
        for (int i = 0; i < 3; i++)
            if (polled[i].revents)
                accept_all(listeners[i], (enum service)i);
        if (polled[3].revents)
            echo_datagrams(udp);
    }
}
