# The project's services, buckets, images and network. Who may do what is in access.tf.

resource "google_project_service" "needed" {
  for_each = toset([
    "artifactregistry.googleapis.com",
    "billingbudgets.googleapis.com",
    "cloudscheduler.googleapis.com",
    "compute.googleapis.com",
    "dataflow.googleapis.com",
    "iam.googleapis.com",
    "logging.googleapis.com",
    "monitoring.googleapis.com",
    "storage.googleapis.com",
    "tpu.googleapis.com",
  ])
  service            = each.value
  disable_on_destroy = false
}

locals {
  # What each bucket is for, and what becomes of its files.
  buckets = {
    # Raw tiles and volumes: written once, read by every run.
    data = { versioned = false, days = null }
    # Run directories: volumes, tables, ledgers, reports.
    runs = { versioned = true, days = null }
    # Templates and model files.
    release = { versioned = true, days = null }
    # Staged graphs and what Dataflow leaves behind.
    temp = { versioned = false, days = 14 }
  }
}

resource "google_storage_bucket" "bucket" {
  for_each                    = local.buckets
  name                        = "${var.prefix}-${each.key}"
  location                    = var.region
  uniform_bucket_level_access = true
  public_access_prevention    = "enforced"

  versioning {
    enabled = each.value.versioned
  }

  # Files of the temporary bucket expire; elsewhere only what was replaced or deleted does.
  dynamic "lifecycle_rule" {
    for_each = each.value.days == null ? [] : [each.value.days]
    content {
      action {
        type = "Delete"
      }
      condition {
        age = lifecycle_rule.value
      }
    }
  }
  dynamic "lifecycle_rule" {
    for_each = each.value.versioned ? [var.kept_versions_days] : []
    content {
      action {
        type = "Delete"
      }
      condition {
        days_since_noncurrent_time = lifecycle_rule.value
      }
    }
  }
  lifecycle_rule {
    action {
      type = "AbortIncompleteMultipartUpload"
    }
    condition {
      age = 7
    }
  }

  lifecycle {
    prevent_destroy = true
  }
}

resource "google_artifact_registry_repository" "images" {
  repository_id = var.prefix
  location      = var.region
  format        = "DOCKER"
  description   = "Images of workers and jobs"
  # A digest that a template names stays what it is.
  docker_config {
    immutable_tags = true
  }
  depends_on = [google_project_service.needed]
}

resource "google_compute_network" "workers" {
  name                    = var.prefix
  auto_create_subnetworks = false
  depends_on              = [google_project_service.needed]
}

# Workers have no external address: they reach Google's services, and nothing else.
resource "google_compute_subnetwork" "workers" {
  name                     = "${var.prefix}-workers"
  network                  = google_compute_network.workers.id
  region                   = var.region
  ip_cidr_range            = "10.128.0.0/20"
  private_ip_google_access = true
}

resource "google_compute_firewall" "between_workers" {
  name        = "${var.prefix}-between-workers"
  network     = google_compute_network.workers.id
  source_tags = ["dataflow"]
  target_tags = ["dataflow"]
  allow {
    protocol = "tcp"
    ports    = ["12345-12346"]
  }
}
