.PHONY: demo test lint bench kill soak compose-test

demo: ; @scripts/demo.sh   # a shop on a real PostgreSQL (or SOURCE=mariadb, SOURCE=mysql), and a daemon that gets killed
test: ; @scripts/test.sh   # every check and test, on real servers
lint: ; @scripts/lint.sh   # format and clippy; dependencies too where cargo-deny is installed
bench: ; @scripts/bench.sh # beside the databases' own clients and Debezium, on the same backlogs
kill: ; @HEADWATER_KILLS=$${HEADWATER_KILLS:-30} cargo test --test blackbox -- --nocapture kills_lose # more kills: every database, both logs
soak: ; @scripts/soak.sh   # at least a thousand kills on every database and both logs, as a table
compose-test: ; @scripts/compose-test.sh # docker-compose.yml on an engine that is there
