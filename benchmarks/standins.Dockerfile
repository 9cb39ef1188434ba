# hadolint global ignore=DL3008,DL3009,DL3015,DL3066
# Debian's packages in the places where the upstream images have their programs, for engines that cannot pull images.
# One target each; benchmarks/stack.py builds those that the engine lacks. Grafana is not in Debian: its place is taken
# by something that answers on its port and shows no dashboard.
ARG BASE=python:3.11-slim
ARG SUITE=sid

FROM ${BASE} AS debian
ARG SUITE
RUN . /etc/os-release && sed "s/ $VERSION_CODENAME / $SUITE /" /etc/apt/sources.list > /etc/apt/sources.list.d/suite.list \
 && printf 'Acquire::Check-Valid-Until "false";\nAPT::Install-Recommends "false";\nDpkg::Options {"--force-overwrite";};\n' > /etc/apt/apt.conf.d/standins \
 && apt-get update && apt-get install -y busybox && ln -s /bin/busybox /usr/local/bin/wget

FROM debian AS redis
ARG SUITE
LABEL stand-in="redis of Debian ${SUITE}"
RUN apt-get install -y redis-server && install -d -o 999 -g 1000 /data
WORKDIR /data
CMD ["redis-server"]

FROM debian AS haproxy
ARG SUITE
LABEL stand-in="haproxy of Debian ${SUITE}"
RUN apt-get install -y haproxy && id haproxy
USER haproxy
CMD ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"]

FROM debian AS prometheus
ARG SUITE
LABEL stand-in="prometheus of Debian ${SUITE}"
RUN apt-get install -y prometheus && install -d -o nobody -g nogroup /prometheus
USER nobody
ENTRYPOINT ["/bin/prometheus"]
CMD ["--config.file=/etc/prometheus/prometheus.yml", "--storage.tsdb.path=/prometheus"]

FROM debian AS alertmanager
ARG SUITE
LABEL stand-in="alertmanager of Debian ${SUITE}"
RUN apt-get install -y prometheus-alertmanager && ln -s /usr/bin/prometheus-alertmanager /bin/alertmanager \
 && install -d -o nobody -g nogroup /alertmanager
USER nobody
ENTRYPOINT ["/bin/alertmanager"]
CMD ["--config.file=/etc/alertmanager/alertmanager.yml", "--storage.path=/alertmanager"]

FROM debian AS grafana
LABEL stand-in="no Grafana, something that answers on its port"
RUN install -d -o 472 -g 0 /var/lib/grafana /srv/api && echo '{"database": "none", "version": "stand-in"}' > /srv/api/health
USER 472
WORKDIR /srv
CMD ["python3", "-m", "http.server", "3000"]
